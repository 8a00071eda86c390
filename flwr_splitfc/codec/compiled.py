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

_warned: set[str] = set()
"""What warnings have said of kept machine code."""


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
    """Let a call go on where its machine code cannot be kept, or read again.

    A full disk keeps nothing. A power loss leaves files that end early, which are
    replaced. Whether the code within a whole file is damaged, nobody checks.
    """
    # the names are numba's own: where a version has others, such a disk is an error
    kept: Any = getattr(dispatcher, "_cache", None)
    if not (hasattr(kept, "load_overload") and hasattr(kept, "save_overload")):
        return
    load, save = kept.load_overload, kept.save_overload

    def load_if_possible(*asked: Any) -> Any:
        try:
            return load(*asked)
        except Exception as error:  # damaged bytes raise whatever pickle makes of them
            _warn_once("cannot be read in", kept.cache_path, error)
            return None  # numba compiles, and saves over a damaged file

    def save_if_possible(*compiled: Any) -> None:
        try:
            save_anew(*compiled)
        except OSError as error:
            _warn_once("cannot be kept in", kept.cache_path, error)

    def save_anew(*compiled: Any) -> None:
        try:
            save(*compiled)
        except OSError:
            raise
        except Exception:
            # the index is damaged, which saving reads first: an empty one replaces it
            kept.flush()
            save(*compiled)

    kept.load_overload = load_if_possible
    kept.save_overload = save_if_possible


def _warn_once(problem: str, folder: str, error: Exception) -> None:
    if problem not in _warned:
        logger.warning(
            "Machine code %s %s, so this process compiles for itself: %s",
            problem,
            folder,
            error,
        )
    _warned.add(problem)
