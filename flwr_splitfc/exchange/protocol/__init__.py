"""What both sides of the exchange share: frames, tickets, tensors, errors, addresses, TLS."""
