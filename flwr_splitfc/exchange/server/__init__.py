"""The server's side of the exchange."""
