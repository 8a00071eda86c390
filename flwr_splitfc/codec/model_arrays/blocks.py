"""Blocks of entries, so that what is computed of one stays in the processor's cache."""

from __future__ import annotations

from collections.abc import Iterator

BLOCK_ENTRIES = 2**16
"""Entries of a block; the last has fewer. Payloads are in this order."""


def blocks(entries: int) -> Iterator[slice]:
    """Yield the part of each block in turn.

    >>> [block.stop - block.start for block in blocks(100_000)]
    [65536, 34464]
    """
    for start in range(0, entries, BLOCK_ENTRIES):
        stop = min(start + BLOCK_ENTRIES, entries)
        yield slice(start, stop)
