"""Arrays of models and optimizers, coded at a number of bits an entry."""

from flwr_splitfc.codec.model_arrays.array_codec import (
    CODED_DTYPES,
    EXACT_BITS,
    EXACT_STYPE,
    LEAST_BITS,
    MOST_BITS,
    STYPES,
    check_bits,
    decode_array,
    encode_array,
    encode_state,
)

__all__ = [
    "CODED_DTYPES",
    "EXACT_BITS",
    "EXACT_STYPE",
    "LEAST_BITS",
    "MOST_BITS",
    "STYPES",
    "check_bits",
    "decode_array",
    "encode_array",
    "encode_state",
]
