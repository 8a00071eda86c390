"""Coverage-guided fuzzing of every decoder, on demand. In the repository's root, after ``pip install atheris``:

    python -m fuzz.fuzz_decode -max_total_time=300

Starts from the golden vectors. An input is the number of a vector, whose shape and
codec it takes, and a payload. What is neither refused nor finite and of the agreed
shape, or on what the package and the decoder that is made from the document disagree,
is reported as a crash; other options are libFuzzer's.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import atheris

# numba cannot compile what is instrumented; and as Python a loop raises an error for an
# index that machine code would follow
os.environ["NUMBA_DISABLE_JIT"] = "1"

with atheris.instrument_imports(
    include=["flwr_splitfc.codec", "tests.codec.independent_decoder"],
    enable_loader_override=False,
):
    import torch

    from tests.codec import test_hostile_bytes as hostile
    from tests.codec.model_arrays import test_hostile_arrays as hostile_arrays

from tests.fixture import ArrayVector, LabelVector, MatrixVector

VECTORS: list[MatrixVector | LabelVector | ArrayVector] = [
    *hostile.MATRICES,
    *hostile.LABELS,
    *hostile_arrays.CODED,
]
NUMBER_BYTES = 2


def decode(data: bytes) -> None:
    """One input."""
    number, payload = data[:NUMBER_BYTES], data[NUMBER_BYTES:]
    vector = VECTORS[int.from_bytes(number, "little") % len(VECTORS)]
    if isinstance(vector, LabelVector):
        hostile.label_outcome(payload)
    elif isinstance(vector, ArrayVector):
        hostile_arrays.agreed_outcome(vector.array(payload))
    else:
        hostile.agreed_outcome(vector, vector.array(payload))


def main() -> None:
    """Fuzz from a corpus of the vectors."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as corpus:
        for number, vector in enumerate(VECTORS):
            prefix = number.to_bytes(NUMBER_BYTES, "little")
            (Path(corpus) / str(number)).write_bytes(prefix + vector.payload)
        atheris.Setup(
            [sys.argv[0], "-timeout=10", "-rss_limit_mb=2048", *sys.argv[1:], corpus],
            decode,
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
