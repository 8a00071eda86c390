"""How many entries tensors may claim where a few bytes stand for any number of them.

Who knows the shapes that come checks those. A device does not know what a server half
gives, nor the model that it gets.
"""

from collections.abc import Iterable

from flwr_splitfc.codec import PayloadError
from flwr_splitfc.codec.format.fields import allocated_entries

FREE_ENTRIES = 2**28
"""Of all tensors of a message together, whatever their bytes: 1 GiB as float32."""

_BITS_PER_BYTE = 8
_MOST_SIZES = 32  # of a model's array; a product of many sizes takes its time


def claimed_entries(shape: Iterable[int]) -> int:
    """Return the entries of a shape from the wire.

    A size of 0 counts as 1: it would make any other size free.

    >>> claimed_entries([3, 0, 4])
    12

    Raises
    ------
    PayloadError
        If no tensor has so many dimensions.
    """
    sizes = tuple(shape)
    if len(sizes) > _MOST_SIZES:
        raise PayloadError(
            f"a tensor has {len(sizes)} dimensions, at most {_MOST_SIZES} may be"
        )
    return allocated_entries(sizes)


def check_claims(what: str, entries: int, sent_bytes: int) -> None:
    """Refuse more entries than `FREE_ENTRIES` and one for each bit that came.

    So what takes a bit an entry may be of any size.

    Raises
    ------
    PayloadError
    """
    most = FREE_ENTRIES + _BITS_PER_BYTE * sent_bytes
    if entries > most:
        raise PayloadError(
            f"{what} of {sent_bytes} bytes has {entries} entries, at most {most} may be"
        )
