"""Mask-encoded sparsification (2408.13787)."""
