"""The parts of the exchange that devices and server share: frames, tickets, errors."""
