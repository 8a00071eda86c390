"""Where devices connect, and their sessions.

`SplitEndpoint` puts the following together: `StreamServer` listens, `SessionRegistry`
knows the tokens, `SessionService` answers frames and ends sessions, `TurnAccounts`
enters what they moved in the `Ledger`, and timeouts says when a device is waited for no
longer. `ServerSession` is one session: it admits one device process, and applies each
frame once, whichever connection brings it.
"""
