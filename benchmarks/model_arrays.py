"""The time and the bytes that arrays of a model and an optimizer take.

    python benchmarks/model_arrays.py
    python benchmarks/model_arrays.py --entries 4608,10000000 --bits 4,8

`benchmarks/README.md` says what the columns mean.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any, TypeVar

import numpy as np
from flwr.app import Array
from numpy.typing import NDArray
from range_coder import range_decode, range_encode, symbols_read

from flwr_splitfc.codec.model_arrays import decode_array, encode_array, encode_state

T = TypeVar("T")


def gaussian(entries: int, draw: np.random.Generator) -> NDArray[Any]:
    return draw.normal(size=entries)


def laplacian(entries: int, draw: np.random.Generator) -> NDArray[Any]:
    return draw.laplace(size=entries)


def table(entries: int, draw: np.random.Generator) -> NDArray[Any]:
    """Draw rows of 16 columns, each of which is half of the one before."""
    columns = 16
    return draw.normal(size=(entries // columns, columns)) * 0.5 ** np.arange(columns)


def second_moment(entries: int, draw: np.random.Generator) -> NDArray[Any]:
    """Draw squares over decades, with a standard deviation of four octaves."""
    octaves = 4 * draw.normal(size=entries) - 20
    return np.exp2(octaves)


CONTENTS = {
    "gaussian": gaussian,
    "laplacian": laplacian,
    "table": table,
    "second moment": second_moment,
}


def encoded(content: str, values: NDArray[Any], bits: int) -> Array:
    if content == "second moment":
        return encode_state(values, bits, np.random.default_rng(0))
    return encode_array(values, bits)


# Measuring


def timed(step: Callable[..., T], *arguments: Any) -> tuple[T, float]:
    """Return the result of a call, and its seconds."""
    start = time.perf_counter()
    result = step(*arguments)
    return result, time.perf_counter() - start


def measure(content: str, entries: int, bits: int, rounds: int) -> str:
    """Return a line of the table; the parts take turns, and times are medians."""
    draw = np.random.default_rng(0)
    values = CONTENTS[content](entries, draw).astype(np.float32)
    array = encoded(content, values, bits)
    with symbols_read() as runs:
        decode_array(array)
    seconds: list[list[float]] = []
    for _ in range(rounds):
        _, copy = timed(values.copy)
        array, encode = timed(encoded, content, values, bits)
        _, decode = timed(decode_array, array)
        words, encode_alone = timed(range_encode, runs)
        _, decode_alone = timed(range_decode, words, runs)
        seconds.append([encode, copy + encode_alone, decode, copy + decode_alone])
    columns = zip(*seconds, strict=True)
    ns = "".join(f"{1e9 * median(column) / entries:9.1f}" for column in columns)
    size = len(array.data)
    header = size - words.nbytes
    return (
        f"{content:14}{entries:>11,}{bits:6}{size:>12,}"
        f"{8 * size / entries:9.3f}{header:8}{ns}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for option, default in (("--entries", "144,4608,1000000"), ("--bits", "2,4,8")):
        parser.add_argument(
            option, default=default, help="several by comma (default: %(default)s)"
        )
    parser.add_argument(
        "--rounds", type=int, default=9, help="of each line (default: %(default)s)"
    )
    options = parser.parse_args()
    headings = ("bytes", "bits/e", "header", "enc ns", "floor", "dec ns", "floor")
    widths = (12, 9, 8, 9, 9, 9, 9)
    titles = "".join(map(str.rjust, headings, widths))
    print(f"{'array':14}{'entries':>11}{'bits':>6}{titles}")
    for content in CONTENTS:
        for entries in map(int, options.entries.split(",")):
            for bits in map(int, options.bits.split(",")):
                print(measure(content, entries, bits, options.rounds), flush=True)


if __name__ == "__main__":
    main()
