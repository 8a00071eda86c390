"""Flower's quickstart with a split model, as a Flower app."""
