"""Split learning of text, as a Flower app."""
