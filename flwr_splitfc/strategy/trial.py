"""Whether a run can go on from its own checkpoint: tried before one is needed."""

from collections.abc import Callable, Mapping
from typing import Any

from flwr_splitfc.strategy.checkpoint import CheckpointError, read_back
from flwr_splitfc.strategy.state_tensors import copied


def try_checkpoint(
    state: dict[str, Any], check: Callable[[dict[str, Any]], None]
) -> None:
    """Refuse a state from whose checkpoint a run could not go on.

    Parameters
    ----------
    state : dict
        As `save_checkpoint` takes it.
    check : callable
        Gets the state as it comes back, and raises what it has against it.

    Raises
    ------
    CheckpointError
        It names the part of the state.
    """
    try:
        again = read_back(copied(state))
    except (MemoryError, OSError):
        raise
    # torch's own message is of pickles, and names no part
    except Exception as error:
        why = f"{_lost_part(state)}, which does not come back from a file"
        raise CheckpointError(_refusal(why)) from error
    try:
        check(again)
    except Exception as error:
        own = isinstance(error, CheckpointError)
        raise CheckpointError(_refusal(str(error) if own else repr(error))) from error


def _refusal(why: str) -> str:
    return (
        f"checkpoint= cannot carry this run: {why:.1000}. Change that, or run without "
        "a checkpoint"
    )


def _lost_part(part: Any, name: str = "state") -> str:
    """Return the name and the type of the innermost part that does not come back."""
    parts: dict[Any, Any] = {}
    if isinstance(part, Mapping):
        parts = dict(part)
    elif isinstance(part, list | tuple):
        parts = dict(enumerate(part))
    for key, inner in parts.items():
        if not _comes_back(inner):
            return _lost_part(inner, f"{name}[{key!r}]")
    return f"{name} is a {type(part).__module__}.{type(part).__qualname__}"


def _comes_back(part: Any) -> bool:
    try:
        read_back(copied(part))
    except Exception:
        return False
    return True
