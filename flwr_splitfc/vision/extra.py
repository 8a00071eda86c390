"""Modules that the core installation does not have."""

from importlib import import_module
from typing import Any

from flwr_splitfc.extras import how_to_install


def extra_module(name: str) -> Any:
    """Import a module that comes with the extra ``examples``.

    Raises
    ------
    ModuleNotFoundError
        If it is not installed; the message says how to install it.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{name} cannot be imported ({error}): {how_to_install('examples')}",
            name=error.name,
        ) from error
