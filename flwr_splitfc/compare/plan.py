"""Which runs a comparison has."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import flwr.serverapp.strategy

import flwr_splitfc
from flwr_splitfc.codec import codec_names, codec_settings, cut_codec
from flwr_splitfc.compare.flower_app import (
    FlowerApp,
    Settings,
    SettingsError,
    read_settings,
)
from flwr_splitfc.compare.runs import Budget, Run

_BITS = ("uplink-bits", "downlink-bits")
_FLOWERS = {name.lower() for name in flwr.serverapp.strategy.__all__}
_ANY_SHAPE = (256, 1152)


def expand(
    app: FlowerApp,
    strategies: Sequence[Path],
    *,
    base: Iterable[tuple[str, Settings]] = (),
    over: Settings | None = None,
    seeds: Sequence[int] | None = None,
    budgets: Sequence[Budget] | None = None,
) -> list[Run]:
    """The runs of a comparison: each strategy's, for each budget, for each seed.

    Settings come from the app, then `base`, the strategy's file, and last `budgets`,
    `seeds` and `over`. Methods without a cut, and codecs of fixed precision, run once
    for all budgets.
    """
    origin = f"flwr-splitfc {flwr_splitfc.__version__}, app {app.fingerprint()}"
    runs: dict[str, Run] = {}
    for path in strategies:
        file = (str(path), read_settings(path))
        least = app.settings(*base, file, ("--set", over or {}))
        for budget in budgets if budgets and budgeted(least) else [None]:
            for seed in [None] if seeds is None else seeds:
                chosen: Settings = (
                    {} if budget is None else dict(zip(_BITS, budget, strict=True))
                )
                seeded: Settings = {} if seed is None else {"seed": seed}
                config = app.settings(
                    *base,
                    file,
                    ("--budgets", chosen),
                    ("--seeds", seeded),
                    ("--set", over or {}),
                )
                run = Run(path.stem, config, _budget_of(config), origin)
                runs[run.id] = run
    _check_names(strategies)
    return list(runs.values())


def budgeted(config: Settings) -> bool:
    """Whether the run has a cut whose codec keeps to a budget.

    >>> budgeted({"strategy": "splitfc", "uplink-bits": 0.2, "downlink-bits": 0.4})
    True
    >>> budgeted({"strategy": "splitfed-v2", "codec": "float32", "uplink-bits": 0.2, "downlink-bits": 0.4})
    False
    """
    if not all(key in config for key in _BITS):
        return False
    strategy = str(config.get("strategy", ""))
    if strategy.replace("-", "") in _FLOWERS:
        return False
    codec = strategy if strategy in codec_names() else config.get("codec")
    if codec not in codec_names():
        return True
    names = {key.replace("-", "_"): value for key, value in config.items()}
    known = {key: names[key] for key in codec_settings(str(codec)) if key in names}
    return any(cut_codec(str(codec), **known).smallest_bits(*_ANY_SHAPE))


def parse_budget(text: str) -> Budget:
    """Uplink and downlink bits; the downlink has twice the uplink's unless it is given.

    >>> parse_budget("0.1"), parse_budget("0.1/0.4")
    ((0.1, 0.2), (0.1, 0.4))
    """
    try:
        bits = [float(part) for part in text.split("/")]
        up, down = bits if len(bits) == 2 else (bits[0], 2 * bits[0])
    except ValueError as error:
        raise SettingsError(
            f"a budget is UP or UP/DOWN in bits per entry, got {text!r}"
        ) from error
    if len(bits) > 2 or not (up > 0 and down > 0):
        raise SettingsError(
            f"a budget is UP or UP/DOWN in bits per entry, above 0, got {text!r}"
        )
    return up, down


def _budget_of(config: Settings) -> Budget | None:
    return (
        (float(config[_BITS[0]]), float(config[_BITS[1]])) if budgeted(config) else None
    )


def _check_names(strategies: Sequence[Path]) -> None:
    by_name: dict[str, Path] = {}
    for path in strategies:
        if by_name.setdefault(path.stem, path).resolve() != path.resolve():
            raise SettingsError(
                f"{by_name[path.stem]} and {path} have one name, which is the method's in the table"
            )
