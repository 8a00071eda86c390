"""The server's side of the exchange.

From outside to inside:

- `grid` puts a ticket into each of Flower's messages, and counts what they carry.
- `endpoint` is where devices connect with it; it answers the frames of their sessions.
- `turn` decodes a frame, has the server half trained on it, and encodes the answer.
- `half` is the server half, which takes a step as a whole or not at all.
- `accounts` are the counts of all of this, by round and by device.
"""
