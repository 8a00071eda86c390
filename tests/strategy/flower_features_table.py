"""The tables in docs/flower-features.md. To write them anew, in the repository's root:

python -m tests.strategy.flower_features_table
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord
from flwr.clientapp import mod as flower_mods
from flwr.serverapp import strategy as flower_strategies
from torch import nn

from flwr_splitfc import EndpointConfig, SplitFC
from tests.halves import DeviceHalf, ServerHalf, seeded
from tests.local_grid import LocalGrid
from tests.strategy.test_flower_features import (
    ADAM,
    DEVICES,
    DP_OPTIONS,
    MOD_STRATEGY,
    STRATEGY_SETTINGS,
    make_mod,
    make_strategy,
    nothing_failed,
    run,
    whole_app,
)

PAGE = Path(__file__).parents[2] / "docs" / "flower-features.md"
BEGIN, END = "<!-- features: begin -->\n", "<!-- features: end -->\n"

# what `flwr.serverapp.strategy` has beside strategies to choose
PARTS = {"Result", "Strategy"}
STRATEGIES = sorted(set(flower_strategies.__all__) - PARTS)
MODS = sorted(flower_mods.__all__)


@dataclass(frozen=True)
class Feature:
    """A feature of Flower's, as somebody would write it, and a run with it."""

    written: str
    run: Callable[[], Any]

    def row(self) -> str:
        return f"| `{self.written}` | {self._outcome()} |"

    def _outcome(self) -> str:
        try:
            split = self.run()
        except Exception as error:
            return _said(type(error).__name__, str(error))
        failures = [row["failures"] for row in split.progress.rows]
        if any(failures):
            why = next(iter(failures[0].values()))
            return _said("each device fails", why)
        nothing_failed(split)
        return "works"


def _said(kind: str, message: str) -> str:
    first_line, *_ = message.splitlines()
    return f"{kind}: {first_line}".replace("|", "\\|")


def of_strategy(name: str) -> Feature:
    mods = [mod for mod, wanted in MOD_STRATEGY.items() if wanted == name]

    def with_it() -> Any:
        app = whole_app([], [make_mod(mod) for mod in mods])
        return run(app, devices=make_strategy(name))

    inner = "FedAvg(), ..." if name in DP_OPTIONS else "..."
    return Feature(f"SplitFC(..., devices={name}({inner}))", with_it)


def around(name: str) -> Feature:
    def with_it() -> Any:
        split = SplitFC(seeded(ServerHalf), nn.CrossEntropyLoss(), ADAM)
        wrapper = getattr(flower_strategies, name)(split, **DP_OPTIONS[name])
        arrays = ArrayRecord(seeded(DeviceHalf).state_dict())
        wrapper.start(LocalGrid(whole_app([], []), DEVICES), arrays, 2)

    return Feature(f"{name}(SplitFC(...), ...)", with_it)


def of_mod(name: str, *, in_training: bool) -> Feature:
    mods = [make_mod(name)]

    settings = STRATEGY_SETTINGS.get(name, {})

    def with_it() -> Any:
        app = whole_app([], mods) if in_training else whole_app(mods, [])
        devices = make_strategy(MOD_STRATEGY.get(name, "FedAvg"))
        return run(app, devices=devices, **settings)

    argument = "train_mods" if in_training else "mods"
    written = f"SplitClientApp(..., {argument}=[{name}])"
    for key, value in settings.items():
        written += f' and SplitFC(..., {key}="{value}")'
    return Feature(written, with_it)


def of_mod_by_messages(name: str) -> Feature:
    endpoint = EndpointConfig(transport="messages")
    settings = STRATEGY_SETTINGS.get(name, {})

    def with_it() -> Any:
        devices = make_strategy(MOD_STRATEGY.get(name, "FedAvg"))
        app = whole_app([], [make_mod(name)])
        return run(app, devices=devices, endpoint=endpoint, **settings)

    arguments = ['endpoint=EndpointConfig(transport="messages")']
    arguments += [f'{key}="{value}"' for key, value in settings.items()]
    return Feature(
        f"SplitClientApp(..., train_mods=[{name}]) and "
        f"SplitFC(..., {', '.join(arguments)})",
        with_it,
    )


FEATURES = [
    *[of_strategy(name) for name in STRATEGIES],
    *[around(name) for name in DP_OPTIONS],
    *[of_mod(name, in_training=True) for name in MODS],
    *[of_mod(name, in_training=False) for name in MODS],
    *[of_mod_by_messages(name) for name in MODS],
]


def main() -> None:
    rows = [feature.row() for feature in FEATURES]
    table = "\n".join(["| | what happens |", "| --- | --- |", *rows, ""])
    before, rest = PAGE.read_text().split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(f"{before}{BEGIN}{table}{END}{after}")


if __name__ == "__main__":
    main()
