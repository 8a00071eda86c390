"""Quantisers turn a matrix into bytes and back.

Small ones are a module, others a folder; `quantiser` has their contract. They do not
know selectors.
"""
