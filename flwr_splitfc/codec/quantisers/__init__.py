"""Quantisers turn a matrix into bytes and back: a file each, and their contract, `Quantiser`."""
