"""The record of a run: what one needs to know to repeat it."""

import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch

_PACKAGES = (
    "flwr-splitfc",
    "flwr",
    "torch",
    "numpy",
    "numba",
    "constriction",
    "grpcio",
    "protobuf",
)


def run_record(run_config: Mapping[str, Any], **about: Any) -> dict[str, Any]:
    """Return the record that belongs into ``results.json``.

    It holds all settings, the versions of packages, and the thread count.

    Parameters
    ----------
    run_config : mapping
        The app's, with the seed and how the data was partitioned.
    **about
        What else identifies the run, such as the codec's settings and the digest of its
        payloads.
    """
    return {
        "run_config": dict(run_config),
        "versions": _versions(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "torch_threads": torch.get_num_threads(),
        **about,
    }


def _versions() -> dict[str, str]:
    return {name: version(name) for name in _PACKAGES}


def changed_versions(record: Mapping[str, Any]) -> list[str]:
    """Return which packages changed since the record's run, and how.

    Each is a text, ``name was, now is``.
    """
    then = record.get("versions", {})
    changes = []
    for name, now in _versions().items():
        if then.get(name) != now:
            changes.append(f"{name} {then.get(name)}, now {now}")
    return changes
