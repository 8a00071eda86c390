"""Selectors pick the part of the features that is sent: a file each, and their contract, `Selector`."""
