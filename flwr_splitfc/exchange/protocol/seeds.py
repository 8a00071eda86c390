"""Seeds for everything random, derived from the run's seed by name.

The seed of a name is the upper 63 bits of BLAKE2b-64 of its parts, joined by "/".
"""

import hashlib

import torch


def derive_seed(*parts: int | str) -> int:
    """Return the 63-bit seed of `parts`, such as (run seed, device, round, step).

    It is the same on every machine.

    >>> derive_seed(0, "7", 1) == derive_seed(0, "7", 1) != derive_seed(0, "7", 2)
    True
    """
    name = "/".join(str(part) for part in parts)
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    # torch takes signed 64-bit seeds
    return int.from_bytes(digest, "little") >> 1


def seeded_generator(*parts: int | str) -> torch.Generator:
    """Return a CPU generator that starts from `derive_seed(*parts)`."""
    generator = torch.Generator()
    return generator.manual_seed(derive_seed(*parts))
