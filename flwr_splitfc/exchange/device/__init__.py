"""The device's side of the exchange."""
