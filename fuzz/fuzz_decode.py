"""Coverage-guided fuzzing of every decoder, on demand. In the repository's root, after ``pip install atheris``:

    python -m fuzz.fuzz_decode -max_total_time=300

Starts from the golden vectors. An input is the number of a vector, whose shape and
codec it takes, and a payload. What is neither refused nor a finite matrix of the agreed
shape, or on what the package and the decoder that is made from the document disagree,
is reported as a crash; other options are libFuzzer's.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(
    include=["flwr_splitfc.codec", "tests.codec.independent_decoder"],
    enable_loader_override=False,
):
    import torch

    from tests.codec import test_hostile_bytes as hostile

from tests.fixture import LabelVector, MatrixVector

VECTORS: list[MatrixVector | LabelVector] = [*hostile.MATRICES, *hostile.LABELS]


def decode(data: bytes) -> None:
    """One input."""
    if not data:
        return
    vector, payload = VECTORS[data[0] % len(VECTORS)], data[1:]
    if isinstance(vector, LabelVector):
        hostile.label_outcome(payload)
    else:
        hostile.agreed_outcome(vector, vector.array(payload))


def main() -> None:
    """Fuzz from a corpus of the vectors."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as corpus:
        for number, vector in enumerate(VECTORS):
            (Path(corpus) / str(number)).write_bytes(bytes([number]) + vector.payload)
        atheris.Setup(
            [sys.argv[0], "-timeout=10", "-rss_limit_mb=2048", *sys.argv[1:], corpus],
            decode,
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
