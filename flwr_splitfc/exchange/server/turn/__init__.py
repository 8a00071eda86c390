"""A device's turn: frames in, answers out.

`Turn` decodes a frame (received), has the half trained on it, and encodes the answer,
within `Limits` and a `WorkBudget`. `DeviceStates` are what a turn leaves for the next.
"""
