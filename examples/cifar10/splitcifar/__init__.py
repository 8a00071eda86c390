"""Split learning of small photographs, as a Flower app."""
