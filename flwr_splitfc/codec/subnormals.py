"""Coding where numbers below 1.2e-38 are kept, whatever the rest of the process does.

``torch.set_flush_denormal(True)``, or a library compiled with ``-ffast-math``, has a
thread's arithmetic take them for zeros. The byte formats need them: both sides compute
the same numbers from the same bytes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")

_SMALLEST_NORMAL = sys.float_info.min


def with_subnormals(function: Callable[P, T]) -> Callable[P, T]:
    """Let a function compute with subnormal numbers, in the thread that calls it."""

    @wraps(function)
    def kept(*args: P.args, **kwargs: P.kwargs) -> T:
        if _SMALLEST_NORMAL / 2 != 0:
            return function(*args, **kwargs)
        torch.set_flush_denormal(False)
        try:
            return function(*args, **kwargs)
        finally:
            torch.set_flush_denormal(True)

    return kept
