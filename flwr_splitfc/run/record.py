"""What a run must be told to be repeated."""

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
    "constriction",
    "grpcio",
    "protobuf",
)


def run_record(run_config: Mapping[str, Any], **about: Any) -> dict[str, Any]:
    """The record that belongs into ``results.json``: all settings, the versions, the thread count.

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
        "versions": {name: version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "torch_threads": torch.get_num_threads(),
        **about,
    }


def changed_versions(record: Mapping[str, Any]) -> list[str]:
    """Packages that are not in the version of the record's run, as ``name was, now is``."""
    now = run_record({})["versions"]
    was = record.get("versions", {})
    return [
        f"{name} {was.get(name)}, now {now[name]}"
        for name in now
        if was.get(name) != now[name]
    ]
