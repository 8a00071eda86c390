"""Quantisers that round entry by entry to the same levels."""
