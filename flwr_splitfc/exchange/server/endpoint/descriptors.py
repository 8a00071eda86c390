"""The file descriptors of this process: how many connections may take."""

from logging import getLogger
from pathlib import Path

_OPEN = Path("/dev/fd")
_RESERVED = 64
"""Descriptors that no connection gets: for checkpoints, results, logs and Flower."""

logger = getLogger("flwr")


def most_connections(wanted: int, sessions: int) -> int:
    """Return how many connections the endpoint may hold, at most `wanted`.

    A connection takes a descriptor. Without any left, a checkpoint could not be
    written.

    Parameters
    ----------
    wanted : int
    sessions : int
        How many sessions the operator allows; where there are fewer descriptors, a
        warning says so.
    """
    limit = _limit()
    # not on Windows
    if limit is None or not _OPEN.exists():
        return wanted
    in_use = len(list(_OPEN.iterdir()))
    free = max(limit - in_use - _RESERVED, 1)
    if free < sessions:
        logger.warning(
            "This process may open %d files, which leaves %d for devices' connections, "
            "and max_sessions is %d: raise the limit (ulimit -n)",
            limit,
            free,
            sessions,
        )
    return min(wanted, free)


def _limit() -> int | None:
    """The most descriptors that this process may have, if the system says it."""
    try:
        import resource
    except ImportError:
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft
