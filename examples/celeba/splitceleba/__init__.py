"""Split learning of faces' attributes, as a Flower app."""
