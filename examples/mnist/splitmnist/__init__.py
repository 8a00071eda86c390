"""Split learning of small images, as a Flower app."""
