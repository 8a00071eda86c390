"""Split learning of a number from a table, as a Flower app."""
