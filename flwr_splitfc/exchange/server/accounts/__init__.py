"""What moved: counts of frames, payloads and turns, summed by round and by device.

`Traffic` is one session's or one message's, and the `Ledger` is the run's. Budget rules
go by what a device's last turn moved.
"""
