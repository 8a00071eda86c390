"""Loops over small arrays, compiled to machine code by numba.

On arrays of some hundred elements a loop takes a microsecond, and so does each call of
numpy. What is compiled here gives the same bits on every machine: floats are added in
the order in which the loop stands, by IEEE arithmetic.

The machine code is kept beside the module, in `__pycache__`, and is made anew when the
module's file changes. Other files, this one included, are not looked at: a compiled
function calls compiled functions of its own file alone, gets tables of numbers as
arguments, and of other files' constants uses only those of the byte formats.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from numba import njit

Loops = TypeVar("Loops", bound=Callable[..., object])


def compiled(function: Loops) -> Loops:
    """Compile a function when it is first called; other threads run beside it."""
    try:
        return _jit(function, cache=True)
    except RuntimeError:
        # no folder can be written: every process compiles for itself
        return _jit(function, cache=False)


def _jit(function: Loops, *, cache: bool) -> Loops:
    # quotients as in numpy: to raise at a zero divisor would keep loops from SIMD
    dispatcher: Loops = njit(function, cache=cache, error_model="numpy", nogil=True)
    return dispatcher
