"""The quantiser of mask-encoded sparsification (2408.13787)."""
