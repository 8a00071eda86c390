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
from logging import getLogger
from typing import Any, TypeVar

from numba import njit

Loops = TypeVar("Loops", bound=Callable[..., object])

logger = getLogger("flwr")

_cannot_keep: set[str] = set()
"""Folders in which machine code could not be kept."""


def compiled(function: Loops) -> Loops:
    """Compile a function when it is first called; other threads run beside it."""
    try:
        dispatcher = _jit(function, keeps=True)
    except RuntimeError:
        # no folder can be written: every process compiles for itself
        return _jit(function, keeps=False)
    _keep_if_possible(dispatcher)
    return dispatcher


def _jit(function: Loops, *, keeps: bool) -> Loops:
    # quotients as in numpy: to raise at a zero divisor would keep loops from SIMD
    dispatcher: Loops = njit(function, cache=keeps, error_model="numpy", nogil=True)
    return dispatcher


def _keep_if_possible(dispatcher: Any) -> None:
    """Let a call go on where its machine code cannot be kept, as on a full disk."""
    # the name is numba's own: where a version has another, a full disk is an error
    kept: Any = getattr(dispatcher, "_cache", None)
    if not hasattr(kept, "save_overload"):
        return
    save = kept.save_overload

    def save_if_possible(*compiled: Any) -> None:
        try:
            save(*compiled)
        except OSError as error:
            _warn_once(kept.cache_path, error)

    kept.save_overload = save_if_possible


def _warn_once(folder: str, error: OSError) -> None:
    if not _cannot_keep:
        logger.warning(
            "Machine code cannot be kept in %s, so each process compiles for itself: "
            "%s",
            folder,
            error,
        )
    _cannot_keep.add(folder)
