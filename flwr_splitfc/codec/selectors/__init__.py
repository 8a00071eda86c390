"""Selectors pick the part of the features that is sent.

Each has a module of its own; `selector` has what they share. They do not know
quantisers.
"""
