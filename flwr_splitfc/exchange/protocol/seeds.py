"""Seeds for everything random, derived from the run's seed by name."""

import hashlib

import torch


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from `parts`, such as (run seed, device, round, step); the same on every machine.

    >>> derive_seed(0, "7", 1) == derive_seed(0, "7", 1) != derive_seed(0, "7", 2)
    True
    """
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seeded_generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded with `derive_seed(*parts)`."""
    return torch.Generator().manual_seed(derive_seed(*parts))
