"""The settings of a comparison's runs: those of all, and those that differ."""

from collections.abc import Sequence
from typing import Any

from flwr_splitfc.compare.run_plan import codec_at_cut
from flwr_splitfc.compare.runs import Run, method_label
from flwr_splitfc.settings import RunConfig, Scalar

_OF_NO_METHOD = ("results-dir", "checkpoint-dir", "seed")


def common_settings(runs: Sequence[Run]) -> dict[str, Scalar]:
    """Return the settings that all runs share, by key."""
    settings = [_settings_of(run) for run in runs]
    first = settings[0]
    return {key: first[key] for key in sorted(first) if _is_common(key, settings)}


def differing_settings(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """Return for each method and budget the settings in which methods differ."""
    settings = [_settings_of(run) for run in runs]
    keys = {key for each in settings for key in each}
    differing = sorted(key for key in keys if not _is_common(key, settings))
    return {
        method_label(run.method, run.budget): {
            key: own.get(key, "") for key in differing
        }
        for run, own in zip(runs, settings, strict=True)
    }


def _settings_of(run: Run) -> dict[str, Scalar]:
    """Return a run's settings with the codec that it has, whatever the key says.

    Strategy ``splitfc`` has its own, and Flower's strategies have none.
    """
    settings = dict(run.config)
    for key in _OF_NO_METHOD:
        settings.pop(key, None)
    if "codec" in settings:
        settings["codec"] = codec_at_cut(run.config)
    return settings


def _is_common(key: str, settings: Sequence[RunConfig]) -> bool:
    return len({repr(each.get(key)) for each in settings}) == 1
