"""Packages that only come with an extra of this one."""

from importlib import import_module
from importlib.util import find_spec
from typing import Any


def how_to_install(extra: str) -> str:
    """Return the command that installs what an extra brings.

    >>> how_to_install("privacy")
    "pip install 'flwr-splitfc[privacy]'"
    """
    return f"pip install 'flwr-splitfc[{extra}]'"


def imported(module: str, extra: str) -> Any:
    """Import a module of an extra.

    Raises
    ------
    ModuleNotFoundError
        If it is not installed; the message says how to install it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{module} cannot be imported ({error}): {how_to_install(extra)}",
            name=error.name,
        ) from error


def check_installed(extra: str, *modules: str) -> None:
    """Raise a `ValueError` that names the first of an extra's modules not there."""
    for module in modules:
        if find_spec(module) is None:
            raise ValueError(f"{module} is missing: {how_to_install(extra)}")
