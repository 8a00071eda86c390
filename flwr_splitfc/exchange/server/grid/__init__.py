"""Flower's messages: what the server adds to them, and counts of them.

`SplitGrid` puts a ticket into each, on top of `MeteredGrid`, which counts the models in
them and checks the replies (reply_checks). pushed_messages waits for replies,
messages_in_flight for those that bring frames. `Devices` knows devices by their names.
"""
