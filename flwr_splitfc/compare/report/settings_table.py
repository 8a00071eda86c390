"""The settings of a comparison's runs: those of all, and those that differ."""

from collections.abc import Sequence
from typing import Any

from flwr_splitfc.compare.runs import Run, method_label
from flwr_splitfc.settings import Scalar

_OF_NO_METHOD = ("results-dir", "checkpoint-dir", "seed")


def common_settings(runs: Sequence[Run]) -> dict[str, Scalar]:
    """Return the settings that all runs share, by key."""
    first = runs[0].config
    return {
        key: first[key]
        for key in sorted(first)
        if key not in _OF_NO_METHOD and _is_common(key, runs)
    }


def differing_settings(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """Return for each method and budget the settings in which methods differ."""
    keys = {key for run in runs for key in run.config}
    differing = sorted(
        key for key in keys if key not in _OF_NO_METHOD and not _is_common(key, runs)
    )
    return {
        method_label(run.method, run.budget): {
            key: run.config.get(key, "") for key in differing
        }
        for run in runs
    }


def _is_common(key: str, runs: Sequence[Run]) -> bool:
    return len({repr(run.config.get(key)) for run in runs}) == 1
