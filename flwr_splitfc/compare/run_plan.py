"""Which runs a comparison has."""

from collections.abc import Iterable, Sequence

import flwr.serverapp.strategy

import flwr_splitfc
from flwr_splitfc.apps.run_codecs import codec_of, settings_of
from flwr_splitfc.apps.run_settings import RunSettings
from flwr_splitfc.apps.strategies import SPLIT
from flwr_splitfc.codec import CutCodec, codec_names, cut_codec
from flwr_splitfc.codec.quality import NO_CEILING
from flwr_splitfc.compare.flower_app import FlowerApp, Layer
from flwr_splitfc.compare.methods import Method, check_names
from flwr_splitfc.compare.runs import Budget, Run
from flwr_splitfc.settings import RunConfig, check_int64, read_settings, under_key

_UPLINK_BITS = "uplink-bits"
_DOWNLINK_BITS = "downlink-bits"
_FLOWERS_STRATEGIES = {name.lower() for name in flwr.serverapp.strategy.__all__}
# Whether a codec has a smallest budget does not depend on the shape of its matrices.
_ANY_SHAPE = (256, 1152)


def expand(
    app: FlowerApp,
    methods: Sequence[Method],
    *,
    base: Sequence[Layer] = (),
    over: RunConfig | None = None,
    seeds: Sequence[int] | None = None,
    budgets: Sequence[Budget] | None = None,
) -> list[Run]:
    """Return the runs of a comparison: each method's, for each budget, for each seed.

    Settings come from the app, then from `base`, from the method, from `budgets` and
    `seeds`, and last from `over`. Methods without a cut, and codecs of fixed precision,
    run once for all budgets.

    Raises
    ------
    ValueError
        If a method or a setting is none that the app has.
    """
    check_names(methods)
    origin = f"flwr-splitfc {flwr_splitfc.__version__}, app {app.fingerprint()}"
    last = Layer("--set", over or {})
    app.check_keys([*base, *(method.layer for method in methods), last])
    runs: dict[str, Run] = {}
    for method in methods:
        settings = [*base, method.layer]
        settled = app.run_config([*settings, last])
        own_budgets = budgets if budgets and has_cut_budget(settled) else None
        for chosen in _layers(settings, own_budgets, seeds):
            config = app.run_config([*chosen, last])
            with under_key("seed"):  # the run's name has it
                check_int64(int(config.get("seed", 0)))
            if app.has_split_server_app:
                _check_cut(config)
            run = Run(method.name, config, _budget_of(config), origin)
            runs[run.id] = run
    return list(runs.values())


def _check_cut(config: RunConfig) -> None:
    """Refuse a strategy or a codec that is unknown to a `SplitServerApp`.

    Those of other apps may be their own.
    """
    settings = read_settings(RunSettings, {"strategy": config["strategy"]})
    if settings.strategy in SPLIT:
        codec_of(config)


def _layers(
    settings: Sequence[Layer],
    budgets: Sequence[Budget] | None,
    seeds: Sequence[int] | None,
) -> Iterable[list[Layer]]:
    """Give a method's layers once for each budget and seed, with these on top."""
    for budget in [None] if budgets is None else budgets:
        for seed in [None] if seeds is None else seeds:
            chosen = list(settings)
            if budget is not None:
                uplink, downlink = budget
                bits = {_UPLINK_BITS: uplink, _DOWNLINK_BITS: downlink}
                chosen.append(Layer("--budgets", bits))
            if seed is not None:
                chosen.append(Layer("--seeds", {"seed": seed}))
            yield chosen


def has_cut_budget(config: RunConfig) -> bool:
    """Return whether the run has a cut whose codec keeps to a budget.

    >>> bits = {"uplink-bits": 0.2, "downlink-bits": 0.4}
    >>> has_cut_budget({"strategy": "splitfc", **bits})
    True
    >>> has_cut_budget({"strategy": "splitfed-v2", "codec": "float32", **bits})
    False
    """
    if _UPLINK_BITS not in config or _DOWNLINK_BITS not in config:
        return False
    if _is_flowers(config):
        return False
    cut = _known_cut(config)
    # A codec of the app's own may keep to a budget.
    return cut is None or any(cut.smallest_bits(*_ANY_SHAPE))


def codec_at_cut(config: RunConfig) -> str:
    """Return the codec of the run by its name; none where nothing is split.

    >>> codec_at_cut({"strategy": "splitfc", "codec": "float32"})
    'splitfc-rd'
    """
    if _is_flowers(config):
        return ""
    cut = _known_cut(config)
    return str(config.get("codec", "")) if cut is None else cut.name


def _is_flowers(config: RunConfig) -> bool:
    strategy = str(config.get("strategy", ""))
    return strategy.replace("-", "") in _FLOWERS_STRATEGIES


def _known_cut(config: RunConfig) -> CutCodec | None:
    """Make the codec at the run's cut; None for one that only the app knows."""
    known = codec_names()
    strategy = str(config.get("strategy", ""))
    if strategy == "splitfc":
        return codec_of(config)
    codec = strategy if strategy in known else str(config.get("codec", ""))
    if codec not in known:
        return None
    return cut_codec(codec, **settings_of(codec, config))


def parse_budget(text: str) -> Budget:
    """Parse uplink and downlink bits; the downlink has twice as many unless given.

    >>> parse_budget("0.1"), parse_budget("0.1/0.4")
    ((0.1, 0.2), (0.1, 0.4))
    """
    try:
        bits = [float(part) for part in text.split("/")]
    except ValueError as error:
        raise ValueError(
            f"a budget is UP or UP/DOWN in bits per entry, got {text!r}"
        ) from error
    if len(bits) == 1:
        bits.append(2 * bits[0])
    if len(bits) > 2 or not all(way > 0 for way in bits):
        raise ValueError(
            f"a budget is UP or UP/DOWN in bits per entry, above 0, got {text!r}"
        )
    uplink, downlink = bits
    return uplink, downlink


def _budget_of(config: RunConfig) -> Budget | None:
    """Return the budget that the run keeps to, whichever setting names it.

    A quality without ceilings keeps to none.
    """
    if not has_cut_budget(config):
        return None
    cut = _known_cut(config)
    if cut is None:
        return float(config[_UPLINK_BITS]), float(config[_DOWNLINK_BITS])
    budget = cut.uplink_bits, cut.downlink_bits
    if cut.quality is not None and budget == (NO_CEILING, NO_CEILING):
        return None
    return budget
