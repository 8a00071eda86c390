"""The server's side of the exchange.

From outside to inside:

- `SplitGrid` (split_grid) puts a ticket into each of Flower's messages, on top of
  `MeteredGrid`, which counts the models in them; pushed_messages waits for replies,
  messages_in_flight for those that bring frames.
- `SplitEndpoint` (endpoint) puts the following together: `StreamServer` listens,
  `SessionRegistry` knows the tokens, `SessionService` answers frames and ends sessions,
  `TurnAccounts` enters what they moved in the `Ledger`, and timeouts says when a device
  is waited for no longer.
- `ServerSession` (server_session) is one session: it admits one device process, and
  applies each frame once, whichever connection brings it.
- `Turn` (turn) answers frames by decoding (received), training and encoding.
- `Halves` say which server half a turn trains: `HalfTrainer`, which applies a step as a
  whole or not at all (step_checks).
"""
