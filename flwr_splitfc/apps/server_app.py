"""A whole ServerApp from the halves of a model, a loss and an optimizer."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from logging import getLogger
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAdam, FedAvg, FedProx, Strategy
from torch import nn

from flwr_splitfc.apps.factories import MakeModel, make_half, tail_of
from flwr_splitfc.apps.precision import PRECISIONS
from flwr_splitfc.codec import CutCodec, codec_settings, cut_codec
from flwr_splitfc.exchange import EndpointConfig, Ledger, MeteredGrid
from flwr_splitfc.exchange.server.budget_rules import BudgetRule
from flwr_splitfc.model import HeadAndTail, JoinedModel, LossFn
from flwr_splitfc.run import Progress, run_record
from flwr_splitfc.run.progress import EvaluateFn
from flwr_splitfc.settings import RunConfig, check_choice, check_least, read_settings
from flwr_splitfc.strategy import (
    RoundRobin,
    SplitFC,
    SplitFedV1,
    SplitFedV2,
    SplitLearning,
)
from flwr_splitfc.strategy.budget_schedule import BudgetSchedule
from flwr_splitfc.strategy.budgets import budget_rules
from flwr_splitfc.strategy.waiting import wait_for_devices

SPLIT: dict[str, type[SplitLearning]] = {
    "splitfc": SplitFC,
    "split-learning": SplitLearning,
    "splitfed-v1": SplitFedV1,
    "splitfed-v2": SplitFedV2,
}
UNSPLIT: dict[str, Callable[..., Strategy]] = {
    "fedavg": FedAvg,
    "fedprox": partial(FedProx, proximal_mu=0.1),
    "fedadam": partial(FedAdam, eta=1e-2, tau=1e-3),
}
_DEVICES = {
    "splitfc": "round-robin",
    "split-learning": "round-robin",
    "splitfed-v1": "fedavg",
    "splitfed-v2": "fedavg",
}

Evaluate = Callable[[nn.Module, Context], dict[str, float]]

logger = getLogger("flwr")


@dataclass(frozen=True)
class RunSettings:
    """What a run-config says about a run, but for the codec; `SplitServerApp` has the table."""

    strategy: str = "splitfc"
    devices: str = ""
    fraction_train: float = 1.0
    num_rounds: int = 3
    device_budgets: str = "node-config"
    uplink_schedule: str = ""
    downlink_schedule: str = ""
    steps_per_turn: int = 0
    learning_rate: float | None = None
    optimizer_state: str = ""
    u_shaped: bool = True
    evaluate_every: int = 1
    evaluate_on_devices: bool = False
    num_devices: int = 2
    seed: int = 0
    torch_threads: int = 1
    device_precision: str = "float32"
    results_dir: str = "results"
    checkpoint_dir: str = ""

    def __post_init__(self) -> None:
        check_choice("strategy", self.strategy, [*SPLIT, *UNSPLIT])
        check_choice("devices", self.devices, ["", "round-robin", *UNSPLIT])
        check_choice(
            "optimizer-state",
            self.optimizer_state,
            ["", "relay", "per-device", "fresh"],
        )
        check_choice("device-precision", self.device_precision, PRECISIONS)
        check_least(
            self,
            num_rounds=1,
            evaluate_every=1,
            num_devices=1,
            torch_threads=1,
            steps_per_turn=0,
        )
        check_least(self, learning_rate=0.0)
        if not 0.0 < self.fraction_train <= 1.0:
            raise ValueError(
                f"fraction-train is {self.fraction_train}, wanted more than 0 and at most 1"
            )
        self.budgets()

    def budgets(self) -> list[BudgetRule]:
        """The rules of what devices get, the schedule's last."""
        schedules = self.uplink_schedule, self.downlink_schedule
        return [
            *budget_rules(self.device_budgets),
            *([BudgetSchedule(*schedules)] if any(schedules) else []),
        ]


def codec_of(config: RunConfig) -> CutCodec:
    """The codec that a run-config asks for: by strategy ``splitfc``, or by the key ``codec``.

    >>> codec_of({"strategy": "splitfed-v2", "codec": "splitfc", "uplink-bits": 0.1, "seed": 7})
    cut_codec('splitfc', uplink_bits=0.1, downlink_bits=0.4, evaluation='float16', reduction=16.0)
    """
    name = (
        "splitfc"
        if config.get("strategy", "splitfc") == "splitfc"
        else str(config.get("codec", "float32"))
    )
    return cut_codec(name, **_codec_settings(name, config))


def output_codec_of(config: RunConfig) -> CutCodec:
    """The codec of the server half's output that a run-config asks for.

    >>> output_codec_of({"output-codec": "splitfc", "output-downlink-bits": 0.1, "downlink-bits": 0.3})
    cut_codec('splitfc', uplink_bits=0.2, downlink_bits=0.1, evaluation='float16', reduction=16.0)
    """
    name = str(config.get("output-codec", "float32"))
    return cut_codec(name, **_codec_settings(name, config, "output-"))


def _codec_settings(name: str, config: RunConfig, prefix: str = "") -> dict[str, Any]:
    keys = {
        setting: prefix + setting.replace("_", "-") for setting in codec_settings(name)
    }
    return {setting: config[key] for setting, key in keys.items() if key in config}


class SplitServerApp(ServerApp):
    """A `ServerApp` that trains as the run-config says and writes ``results.json``, with no main to write.

    The counterpart of `SplitClientApp`. Strategies of this package train the halves;
    Flower's own train the whole model, and their traffic is counted alike.

    Parameters
    ----------
    model : callable
        ``model()`` makes the device half; a factory with a parameter to fill gets the
        `Context`.
    server_model : callable
        Makes the server half alike. Both, and `tail`, are called once, one after the
        other, with torch's random generator seeded from the run's seed: that decides
        the initial weights.
    loss_fn : callable or None
        ``loss_fn(server_model(features), labels)``, a scalar; not used in U-shaped
        split learning, where it is the devices'.
    optimizer : callable
        ``optimizer(parameters, lr=...)`` makes the server half's optimizer; without the
        key ``learning-rate`` it is called without ``lr``.
    tail : callable, optional
        Makes the last layers, which devices have beside the first (`HeadAndTail`):
        U-shaped split learning, whose labels stay on devices. Give it to
        `SplitClientApp`, too. With ``u-shaped = false`` it is not used, and what
        `server_model` makes then must end with these layers itself.
    evaluate : callable, optional
        ``evaluate(joined_model, context)`` gives metrics of the whole model, on the
        server's own data: before the first round and in rounds that are due.
        ``accuracy`` is shown as such.
    **split_options
        Other parameters as in `SplitLearning`, such as `scheduler` or `max_grad_norm`.

    Notes
    -----
    These keys of the run-config are understood; others are the app's own.

    ======================= ============== ===================================================================
    key                     default
    ======================= ============== ===================================================================
    ``strategy``            "splitfc"      of this package: splitfc, split-learning, splitfed-v1, splitfed-v2;
                                           of Flower, unsplit: fedavg, fedprox, fedadam
    ``devices``             ""             who trains in a round of a split strategy: round-robin, or a sample
                                           that is combined by fedavg, fedprox or
                                           fedadam; "" is fedavg for SplitFed, else
                                           round-robin
    ``fraction-train``      1.0            share of the devices in a sample
    ``num-rounds``          3
    ``steps-per-turn``      0              mini-batches of a device's turn; 0 is what its `load_data` gives
    ``learning-rate``       `optimizer`'s  of both halves
    ``optimizer-state``     ""             of the device half between turns: relay, per-device or fresh; "" is
                                           relay for devices in turn, else per-device
    ``u-shaped``            true           whether the app's `tail` is used: the last layers and the labels on devices
    ``codec``               "float32"      of the split strategies but splitfc, which is one
    its settings            the codec's    any of `codec_settings` in kebab case, such as ``uplink-bits``
    ``output-codec``        "float32"      of the server half's output where the app has a `tail`
    its settings            the codec's    the same with ``output-`` before them, as ``output-downlink-bits``
    ``device-budgets``      "node-config"  who gets other bits: "node-config" those that name their own,
                                           "throughput 0.05s" all, so that a step's
                                           frames are on their way that long, "" nobody
    ``uplink-schedule``     ""             more bits at first: "warmup 4x 20", "linear 4x 5-20" or
                                           "geometric 4x 5-20", see `BudgetSchedule`
    ``downlink-schedule``   ""
    ``evaluate-every``      1              rounds
    ``evaluate-on-devices`` false          whether devices evaluate, too, in those rounds, on their own data and with
                                           features coded as `evaluation` says;
                                           ``device_accuracy`` of the results
    ``num-devices``         2              how many to wait for before the first round
    ``seed``                0
    ``torch-threads``       1              of the server and of each device
    ``device-precision``    "float32"      of the devices' layers: float32, or bfloat16 by ``torch.autocast``
    ``results-dir``         "results"      for results.json and, of split strategies, the trained halves
    ``checkpoint-dir``      ""             a folder from which a killed run goes on; "" keeps no checkpoint
    ``split-...``           loopback       where sessions are served: see `EndpointConfig.from_run_config`
    ======================= ============== ===================================================================

    A value of another type or out of range is a `ValueError` that names the key.

    Examples
    --------
    >>> app = SplitServerApp(
    ...     model=partial(nn.Linear, 4, 3),
    ...     server_model=partial(nn.Linear, 3, 2),
    ...     loss_fn=nn.CrossEntropyLoss(),
    ...     optimizer=torch.optim.Adam,
    ... )
    """

    def __init__(
        self,
        model: MakeModel,
        server_model: MakeModel,
        loss_fn: LossFn | None,
        optimizer: Callable[..., torch.optim.Optimizer],
        *,
        tail: MakeModel | None = None,
        evaluate: Evaluate | None = None,
        **split_options: Any,
    ) -> None:
        super().__init__()
        self.model = model
        self.server_model = server_model
        self.tail = tail
        self.loss_fn = loss_fn
        self.optimizer = optimizer
        self.evaluate = evaluate
        self.split_options = split_options
        super().main()(self._train)

    def _train(self, grid: Grid, context: Context) -> None:
        settings = read_settings(RunSettings, context.run_config)
        torch.set_num_threads(settings.torch_threads)
        results = _absolute(settings.results_dir)
        wait_for_devices(grid, settings.num_devices)
        device, server = self._halves(context, settings.seed)
        about: dict[str, Any] = {"seed": settings.seed}
        if settings.strategy in UNSPLIT:
            progress = self._run_unsplit(
                grid, context, settings, JoinedModel(device, server)
            )
        else:
            loss_fn = None if isinstance(device, HeadAndTail) else self.loss_fn
            strategy = self._split_strategy(
                context.run_config, settings, server, loss_fn
            )
            evaluate_fn = self._evaluate_fn(
                context, partial(strategy.joined_model, device)
            )
            strategy.start(
                grid,
                ArrayRecord(device.state_dict()),
                evaluate_fn=evaluate_fn,
                **_start_options(settings),
            )
            progress = strategy.progress
            about |= {
                "codec": strategy.codec.config(),
                "payload_digest": strategy.ledger.digest(),
            }
            if strategy.output_codec is not None:
                about["output_codec"] = strategy.output_codec.config()
        progress.write(
            results / "results.json", **run_record(context.run_config, **about)
        )
        logger.info("\n%s\n\nWrote %s", progress.table(), results / "results.json")

    def _halves(self, context: Context, seed: int) -> tuple[nn.Module, nn.Module]:
        tail = tail_of(self.tail, context)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            device, server = (
                make_half(self.model, context),
                make_half(self.server_model, context),
            )
            return device if tail is None else HeadAndTail(
                device, make_half(tail, context)
            ), server

    def _split_strategy(
        self,
        config: RunConfig,
        settings: RunSettings,
        server: nn.Module,
        loss_fn: LossFn | None,
    ) -> SplitLearning:
        name = settings.strategy
        options: dict[str, Any] = {
            "budgets": settings.budgets(),
            "endpoint": EndpointConfig.from_run_config(config),
            "devices": _sampling(settings.devices or _DEVICES[name], settings),
            "evaluate_every": settings.evaluate_every,
            "seed": settings.seed,
            "save_to": _absolute(settings.results_dir),
        }
        if settings.optimizer_state:
            options["optimizer_state"] = settings.optimizer_state
        if settings.checkpoint_dir:
            options["checkpoint"] = _absolute(settings.checkpoint_dir)
        options |= (
            _codec_settings(name, config)
            if name == "splitfc"
            else {"codec": codec_of(config)}
        )
        if loss_fn is None:
            options["output_codec"] = output_codec_of(config)
        rate = {} if settings.learning_rate is None else {"lr": settings.learning_rate}
        return SPLIT[name](
            server,
            loss_fn,
            partial(self.optimizer, **rate),
            **{**options, **self.split_options},
        )

    def _run_unsplit(
        self, grid: Grid, context: Context, settings: RunSettings, joined: JoinedModel
    ) -> Progress:
        """Flower's own strategies: devices have the whole model. The grid counts its bytes for the same table."""
        ledger = Ledger()
        progress = Progress(
            settings.num_rounds, ledger, evaluate_every=settings.evaluate_every
        )
        initial = ArrayRecord(joined.state_dict())
        joined.to("cuda" if torch.cuda.is_available() else "cpu")

        def load(arrays: ArrayRecord) -> nn.Module:
            joined.load_state_dict(arrays.to_torch_state_dict())
            return joined

        strategy = _Unsplit(_sampling(settings.strategy, settings), progress)
        strategy.start(
            MeteredGrid(grid, ledger),
            initial,
            evaluate_fn=progress.watch(
                self._evaluate_fn(context, load), lambda: strategy.evaluation
            ),
            **_start_options(settings),
        )
        return progress

    def _evaluate_fn(
        self, context: Context, load: Callable[[ArrayRecord], nn.Module]
    ) -> EvaluateFn | None:
        evaluate = self.evaluate
        if evaluate is None:
            return None
        return lambda server_round, arrays: MetricRecord(
            {**evaluate(load(arrays), context)}
        )


class _Unsplit(Strategy):
    """A strategy of Flower's whose devices evaluate in rounds that are due; `evaluation` is what they found then."""

    def __init__(self, strategy: Strategy, progress: Progress) -> None:
        self.strategy, self.progress = strategy, progress
        self.evaluation: MetricRecord | None = None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        return self.strategy.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        return self.strategy.aggregate_train(server_round, replies)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self.evaluation = None
        due = self.progress.due(server_round)
        return (
            self.strategy.configure_evaluate(server_round, arrays, config, grid)
            if due
            else []
        )

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        if replies := list(replies):
            self.evaluation = self.strategy.aggregate_evaluate(server_round, replies)
        return self.evaluation

    def summary(self) -> None:
        self.strategy.summary()


def _absolute(folder: str) -> Path:
    return Path(folder).expanduser().resolve()


def _sampling(name: str, settings: RunSettings) -> Strategy:
    """Who trains in a round and how what they trained is combined."""
    # all were there when the run began; it goes on without those that die
    those_there: dict[str, Any] = {
        "min_available_nodes": 1,
        "min_evaluate_nodes": 1,
        "fraction_evaluate": float(settings.evaluate_on_devices),
    }
    if name == "round-robin":
        return RoundRobin(**those_there)
    return UNSPLIT[name](
        fraction_train=settings.fraction_train, min_train_nodes=1, **those_there
    )


def _start_options(settings: RunSettings) -> dict[str, Any]:
    """Of `Strategy.start`, with what `SplitClientApp` reads in a message's config."""
    evaluate: dict[str, Any] = {
        "torch-threads": settings.torch_threads,
        "device-precision": settings.device_precision,
    }
    train: dict[str, Any] = {"seed": settings.seed, **evaluate}
    if settings.learning_rate is not None:
        train["learning-rate"] = settings.learning_rate
    if settings.steps_per_turn:
        train["steps-per-turn"] = settings.steps_per_turn
    return {
        "num_rounds": settings.num_rounds,
        "train_config": ConfigRecord(train),
        "evaluate_config": ConfigRecord(evaluate),
    }
