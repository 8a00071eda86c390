"""Seeds for everything random, derived from the run's seed by name.

The seed of a name is the upper 63 bits of BLAKE2b-64 of its parts, joined by "/".
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

import torch

SeedPart: TypeAlias = int | str


def derive_seed(*parts: SeedPart) -> int:
    """Return the 63-bit seed of `parts`, such as (run seed, device, round, step).

    It is the same on every machine.

    >>> derive_seed(0, "7", 1) == derive_seed(0, "7", 1) != derive_seed(0, "7", 2)
    True
    """
    name = "/".join(map(str, parts))
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    number = int.from_bytes(digest, "little")
    # 63 bits fit a signed integer of 64
    return number >> 1


def seeded_generator(*parts: SeedPart) -> torch.Generator:
    """Return a CPU generator that starts from `derive_seed(*parts)`."""
    generator = torch.Generator()
    generator.manual_seed(derive_seed(*parts))
    return generator


@contextmanager
def torch_seeded(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator for a block, and put it back after it.

    `torch.manual_seed` would seed CUDA, too, which `fork_rng` does not put back here.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
