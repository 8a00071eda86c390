"""A whole ServerApp from the halves of a model, a loss and an optimizer."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from logging import getLogger
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy
from torch import nn

from flwr_splitfc.apps.factories import MakeModel, check_factories, make_half, tail_of
from flwr_splitfc.apps.results_file import ResultsFile
from flwr_splitfc.apps.results_folder import results_folder
from flwr_splitfc.apps.run_codecs import codec_of, output_codec_of, settings_of
from flwr_splitfc.apps.run_defence import clip
from flwr_splitfc.apps.run_settings import RunSettings
from flwr_splitfc.apps.strategies import (
    DEFAULT_DEVICES,
    SPLIT,
    UNSPLIT,
    sampling_strategy,
)
from flwr_splitfc.apps.whole_model_strategy import WholeModelStrategy
from flwr_splitfc.batches import TurnSettings
from flwr_splitfc.callbacks import Callback
from flwr_splitfc.callbacks.best_model import check_model_folders
from flwr_splitfc.defence import FeatureDefence
from flwr_splitfc.exchange import EndpointConfig, Ledger, MeteredGrid
from flwr_splitfc.exchange.protocol.seeds import torch_seeded
from flwr_splitfc.exchange.server.grid.reply_checks import ReplyChecks
from flwr_splitfc.model import DecoupledHalf, HeadAndTail, JoinedModel, LossFn
from flwr_splitfc.model.cutting import beginning_of, end_of
from flwr_splitfc.model.joined import check_cuts
from flwr_splitfc.model.part_checks import (
    check_factory,
    check_function,
    check_optimizer,
)
from flwr_splitfc.run import Progress
from flwr_splitfc.run.columns import known
from flwr_splitfc.run.progress import EvaluateFn
from flwr_splitfc.run.returned_metrics import metrics_of
from flwr_splitfc.settings import RunConfig, read_settings
from flwr_splitfc.strategy import RunFailed, SplitLearning
from flwr_splitfc.strategy.checkpoint import CheckpointError
from flwr_splitfc.strategy.waiting import wait_for_devices

Evaluate = Callable[[nn.Module, Context], dict[str, float]]
MakeCallbacks = Callable[[Context], Sequence[Callback]]

logger = getLogger("flwr")


class SplitServerApp(ServerApp):
    """A `ServerApp` that trains as the run-config says and writes ``results.json``.

    The counterpart of `SplitClientApp`, with no main to write. Strategies of this
    package train the halves; Flower's own train the whole model, and their traffic is
    counted alike.

    Parameters
    ----------
    model : callable
        ``model()`` makes the device half; a factory with a parameter to fill gets the
        `Context`.
    server_model : callable
        Makes the server half alike. Both, `tail` and `auxiliary` are called once, one
        after the other, with torch's random generator seeded from the run's seed: that
        decides the initial weights.
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
    auxiliary : callable, optional
        Makes the head from whose loss device halves learn (`DecoupledHalf`) where the
        run-config says ``decoupled = true``. Give it to `SplitClientApp`, too.
    defence : FeatureDefence, optional
        That of `SplitClientApp`, if it was given one: the server half learns from
        clipped features, so the joined model clips them, too, without noise. By default
        that of the run-config.
    evaluate : callable, optional
        ``evaluate(joined_model, context)`` gives metrics of the whole model, on the
        server's own data: before the first round and in rounds that are due. The model
        is a copy, in evaluation mode. ``accuracy`` is shown as such.
    callbacks : callable, optional
        ``callbacks(context)`` makes what listens to a run, such as ``lambda context:
        [TensorBoard("runs")]``.
    **split_options
        Other parameters as in `SplitLearning`, such as `scheduler` or `max_grad_norm`.

    Notes
    -----
    These keys of the run-config are understood; others are the app's own.

    ========================= ============= ============================================
    key                       default
    ========================= ============= ============================================
    ``strategy``              "splitfc"     of this package: splitfc, split-learning,
                                            splitfed-v1, splitfed-v2; of Flower,
                                            unsplit: fedavg, fedprox, fedadam
    ``devices``               ""            who trains in a round of a split strategy:
                                            round-robin, or a sample that is combined by
                                            fedavg, fedprox or fedadam; "" is fedavg for
                                            SplitFed, else round-robin
    ``turns-at-once``         1             where devices take turns, how many train at
                                            the same time in a round; what each changes
                                            is added (`RoundRobin`)
    ``fraction-train``        1.0           share of the devices in a sample
    ``num-rounds``            3             of the run
    ``steps-per-turn``        0             mini-batches of a device's turn; 0 is what
                                            its `load_data` gives
    ``learning-rate``         `optimizer`'s of both halves
    ``optimizer-state``       ""            of the device half between turns: relay,
                                            per-device or fresh; "" is fresh for
                                            splitfed-v1, else relay for devices in turn
                                            and per-device for a sample
    ``model-bits``            0             bits per entry of models on their way, of
                                            what training changed in them, and of
                                            optimizer state: 2 to 16, or 32 for exact
                                            arrays; 0 is the strategy's default
    ``model-codec``           ""            a number for each instead, such as
                                            "weights=6 changes=4 state=3"
    ``u-shaped``              true          whether the app's `tail` is used: the last
                                            layers and the labels on devices
    ``codec``                 "float32"     of the split strategies but splitfc, which
                                            makes its own and refuses another
    ``codec-settings``        ""            the codec's settings in one string, such as
                                            "reduction=8 correction=0.1"
    ``uplink-bits``, ...      the codec's   or any of `codec_settings` under a key of
                                            its own, in kebab case; 0 leaves it to the
                                            codec, unless it may be 0 there; the string
                                            wins
    ``output-codec``          "float32"     of the server half's output where the app
                                            has a `tail`
    ``output-codec-settings`` ""            the settings of that codec in one string
    ``output-...``            the codec's   or each under a key of its own, such as
                                            ``output-downlink-bits``
    ``device-budgets``        "node-config" who gets other bits: "node-config" those
                                            that name their own, "throughput 0.05s" all,
                                            so that a step's frames are on their way
                                            that long, "" nobody
    ``uplink-schedule``       ""            more bits at first: "warmup 4x 20", "linear
                                            4x 5-20" or "geometric 4x 5-20", see
                                            `BudgetSchedule`
    ``downlink-schedule``     ""            the same for the way down
    ``evaluate-every``        1             rounds from one evaluation to the next
    ``evaluate-on-devices``   false         whether devices evaluate, too, in those
                                            rounds, on their own data and with features
                                            coded as `evaluation` says;
                                            ``device_accuracy`` of the results
    ``target-accuracy``       0.0           ends the run in the first round that reaches
                                            it (`TargetAccuracy`); 0 does not
    ``stop-patience``         0             ends the run after so many evaluations that
                                            improve nothing (`EarlyStopping`); 0 does
                                            not
    ``keep-best``             false         whether the best model so far is kept, in
                                            the folder "best" of the results-dir
                                            (`BestModel`)
    ``best-metric``           ""            by which rounds are compared for both:
                                            "highest" or "lowest" and a key of a round
                                            in results.json, such as "lowest loss", or
                                            of what `evaluate` gives; "" is "highest
                                            accuracy"
    ``num-devices``           2             how many to wait for before the first round,
                                            at most ``split-wait-timeout-s``
    ``round-timeout-s``       3600          seconds after which a round ends without the
                                            devices that are missing
    ``pipeline-depth``        0             mini-batches that a device has under way at
                                            most, while answers travel; 0 is the
                                            strategy's default
    ``merge-steps``           1             mini-batches that wait at once and make one
                                            step of the shared server half
    ``replay-steps``          0             further steps of the shared server half
                                            after each mini-batch, on those of before
    ``server-device``         ""            where the server half trains, such as
                                            "cpu"; its copies are spread over several:
                                            "cuda:0 cuda:1"
    ``decoupled``             false         whether device halves learn from a loss of
                                            their own (`auxiliary`): features go up with
                                            the bits of both budgets, and no gradient
                                            comes down
    ``send-every``            1             with ``decoupled``, of how many mini-batches
                                            of a turn one goes up, the first
    ``feature-clip-norm``     0.0           the most that a sample's features are long;
                                            0 clips none
    ``feature-noise``         0.0           standard deviation of the noise on devices'
                                            features, over that length
                                            (`FeatureDefence`); not in `evaluate`
    ``nopeek``                0.0           weight, in the device half's loss, of the
                                            distance correlation of inputs and features
    ``max-failed-rounds``     1             rounds in a row in which every device failed
                                            after which the run ends; where devices take
                                            turns, as many times a turn of each
    ``seed``                  0             everything random in the run follows from it
    ``torch-threads``         1             of the server and of each device, at most
                                            1024
    ``device-precision``      "float32"     of the devices' layers: float32, or bfloat16
                                            by ``torch.autocast``
    ``results-dir``           "results"     for results.json and, of split strategies,
                                            the trained halves
    ``checkpoint-dir``        ""            a folder from which a killed run of a split
                                            strategy goes on; "" keeps no checkpoint
    ``split-...``             loopback      where sessions are served: see
                                            `EndpointConfig.from_run_config`
    ========================= ============= ============================================

    A value of another type or out of range is a `ValueError` that names the key.

    While a run goes on, ``results.json`` has its rounds up to some seconds ago, and
    ``unfinished``; so it does after Ctrl-C, with all rounds. Where a callback has ended
    the run, it has the reason under ``stopped``. Where every device fails, the app
    raises `RunFailed`, no model is saved, and the reason is under ``failed``. An error
    of `evaluate` is under ``failed``, too; the model of the last complete round is
    saved, as after Ctrl-C.

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
        auxiliary: MakeModel | None = None,
        defence: FeatureDefence | None = None,
        evaluate: Evaluate | None = None,
        callbacks: MakeCallbacks | None = None,
        **split_options: Any,
    ) -> None:
        check_factory("model", model, "model()", "the class of the device half")
        check_factory(
            "server_model", server_model, "server_model()", "the server half's class"
        )
        check_optimizer(optimizer)
        check_factories(tail=tail, auxiliary=auxiliary)
        if loss_fn is not None:
            check_function("loss_fn", loss_fn, "loss_fn(outputs, labels)")
        if evaluate is not None:
            check_function("evaluate", evaluate, "evaluate(joined_model, context)")
        if callbacks is not None:
            example = "callbacks(context), such as lambda context: [...]"
            check_function("callbacks", callbacks, example)
        super().__init__()
        self.model = model
        self.server_model = server_model
        self.tail = tail
        self.auxiliary = auxiliary
        self.defence = defence
        self.loss_fn = loss_fn
        self.optimizer = optimizer
        self.evaluate = evaluate
        self.callbacks = callbacks
        self.split_options = split_options
        super().main()(self._train)

    def _train(self, grid: Grid, context: Context) -> None:
        settings = read_settings(RunSettings, context.run_config)
        _warn_of_flowers_rounds(context.run_config)
        torch.set_num_threads(settings.torch_threads)
        # or the first round would choose among those that happen to be there
        limits = _endpoint_config(context.run_config).limits
        wait_for_devices(grid, settings.num_devices, "num-devices", limits)
        with results_folder(settings.results_folder, context.run_config) as folder:
            self._run_in(folder, grid, context, settings)

    def _run_in(
        self, folder: Path, grid: Grid, context: Context, settings: RunSettings
    ) -> None:
        """Make the run, and leave its results and its model in a folder."""
        best_model = settings.best_model(folder)
        callbacks = [*settings.stopping(), *known([best_model])]
        results = ResultsFile(
            folder / "results.json", context.run_config, settings.seed, best_model
        )
        callbacks.append(results)
        if self.callbacks is not None:
            callbacks += self.callbacks(context)
        check_model_folders(callbacks, folder)
        device, server = self._make_halves(context, settings)
        if settings.strategy in UNSPLIT:
            joined = JoinedModel(device, server)
            run = self._whole_run(grid, context, settings, joined, callbacks)
        else:
            strategy = self._split_strategy(
                context.run_config, settings, device, server, folder, callbacks
            )
            run = self._split_run(grid, context, settings, device, strategy)
        results.follow(run.progress, run.about)
        try:
            run.start()
        except CheckpointError:
            # the run has hardly begun, and the file is that of the one before
            raise
        except BaseException as error:
            # that the file cannot be written must not hide why the run has ended
            with suppress(OSError):
                _write_at_end(results, **_ending(error))
            raise
        logger.info("\n%s\n", run.progress().table())
        _write_at_end(results)

    def _make_halves(
        self, context: Context, settings: RunSettings
    ) -> tuple[nn.Module, nn.Module]:
        """Return what devices have of the model and what the server has."""
        tail = tail_of(self.tail, context)
        with torch_seeded(settings.seed):
            device = make_half(self.model, context)
            server = make_half(self.server_model, context)
            if tail is not None:
                device = HeadAndTail(device, make_half(tail, context))
            check_cuts(device, beginning_of(server), end_of(server))
            if settings.decoupled:
                device = DecoupledHalf(device, self._auxiliary_head(context))
        return device, server

    def _auxiliary_head(self, context: Context) -> nn.Module:
        if self.auxiliary is None:
            raise ValueError(
                "decoupled is true, but the app has no auxiliary head to give the "
                "devices"
            )
        return make_half(self.auxiliary, context)

    def _split_run(
        self,
        grid: Grid,
        context: Context,
        settings: RunSettings,
        device: nn.Module,
        strategy: SplitLearning,
    ) -> "_Run":
        """Make the run that trains the halves."""
        defence = self.defence or settings.defence()
        # the server half has learned from clipped features
        clip(device, defence)
        strategy.device_settings |= settings.device_settings()
        strategy.device_settings["defence"] = repr(defence)
        initial = ArrayRecord(device.state_dict())

        def load(arrays: ArrayRecord) -> nn.Module:
            return _own_copy(strategy.joined_model(device, arrays))

        evaluate_fn = self._evaluate_fn(context, load)
        start = _start_of(strategy, grid, initial, settings, evaluate_fn)
        return _Run(start, lambda: strategy.progress, partial(_about, strategy))

    def _split_strategy(
        self,
        config: RunConfig,
        settings: RunSettings,
        device: nn.Module,
        server: nn.Module,
        folder: Path,
        callbacks: Sequence[Callback],
    ) -> SplitLearning:
        # devices that have the last layers have the loss, too
        half = device.device if isinstance(device, DecoupledHalf) else device
        loss_fn = None if isinstance(half, HeadAndTail) else self.loss_fn
        name = settings.strategy
        options: dict[str, Any] = {
            "budgets": settings.budgets(),
            "endpoint": _endpoint_config(config),
            "devices": sampling_strategy(
                settings.devices or DEFAULT_DEVICES[name],
                fraction_train=settings.fraction_train,
                evaluate_on_devices=settings.evaluate_on_devices,
                turns_at_once=settings.turns_at_once,
            ),
            "evaluate_every": settings.evaluate_every,
            "decoupled": settings.decoupled,
            "send_every": settings.send_every,
            "merge_steps": settings.merge_steps,
            "replay_steps": settings.replay_steps,
            "max_failed_rounds": settings.max_failed_rounds,
            "seed": settings.seed,
            "checkpoint": settings.checkpoint_folder,
            "save_to": folder,
            "callbacks": callbacks,
        }
        options |= _given_options(settings)
        codec = codec_of(config)
        if name == "splitfc":
            # SplitFC makes its codec itself; codec_of has checked the settings
            options.update(settings_of("splitfc", config))
        else:
            options["codec"] = codec
        if loss_fn is None:
            options["output_codec"] = output_codec_of(config)
        # the app's own options win over the run-config
        options.update(self.split_options)
        optimizer = self.optimizer
        if settings.learning_rate is not None:
            optimizer = partial(optimizer, lr=settings.learning_rate)
        return SPLIT[name](server, loss_fn, optimizer, **options)

    def _whole_run(
        self,
        grid: Grid,
        context: Context,
        settings: RunSettings,
        joined: JoinedModel,
        callbacks: Sequence[Callback],
    ) -> "_Run":
        """Make the run of a strategy of Flower's own: devices have the whole model.

        The grid counts its bytes, for the same table.
        """
        if settings.checkpoint_folder is not None:
            logger.warning(
                "checkpoint-dir is not used: strategy %r keeps no checkpoint, and a "
                "killed run starts anew",
                settings.strategy,
            )
        ledger = Ledger()
        progress = Progress(
            settings.num_rounds, ledger, evaluate_every=settings.evaluate_every
        )
        # from the CPU, before the model moves to where it is evaluated
        initial = ArrayRecord(joined.state_dict())
        joined.to("cuda" if torch.cuda.is_available() else "cpu")

        def load(arrays: ArrayRecord) -> nn.Module:
            joined.load_state_dict(arrays.to_torch_state_dict())
            return _own_copy(joined)

        sampling = sampling_strategy(
            settings.strategy,
            fraction_train=settings.fraction_train,
            evaluate_on_devices=settings.evaluate_on_devices,
        )
        strategy = WholeModelStrategy(
            sampling, progress, settings.max_failed_rounds, callbacks
        )
        checks = ReplyChecks(initial, "num-examples")
        metered = MeteredGrid(grid, ledger, checks, settings.models())
        evaluate_fn = self._evaluate_fn(context, load)
        start = _start_of(strategy, metered, initial, settings, evaluate_fn)
        return _Run(start, lambda: progress, dict)

    def _evaluate_fn(
        self, context: Context, load: Callable[[ArrayRecord], nn.Module]
    ) -> EvaluateFn | None:
        """Return Flower's hook for `evaluate`; `load` makes the whole model."""
        evaluate = self.evaluate
        if evaluate is None:
            return None

        def evaluate_fn(server_round: int, arrays: ArrayRecord) -> MetricRecord:
            found = evaluate(load(arrays), context)
            function = "evaluate(joined_model, context)"
            # a MetricRecord takes lists of numbers, too
            return MetricRecord(metrics_of(function, found, with_lists=True))

        return evaluate_fn


@dataclass(frozen=True)
class _Run:
    """A run that has not begun.

    Parameters
    ----------
    start : callable
        Trains to the end.
    progress : callable
        Returns the run's progress.
    about : callable
        Returns what ``results.json`` says about this kind of run.
    """

    start: Callable[[], object]
    progress: Callable[[], Progress]
    about: Callable[[], dict[str, Any]]


def _warn_of_flowers_rounds(config: RunConfig) -> None:
    """Warn of the key by which Flower's own templates name their rounds."""
    if "num-server-rounds" in config and "num-rounds" not in config:
        logger.warning(
            "SplitServerApp takes its rounds from num-rounds, which is %d by default: "
            "the run-config has num-server-rounds instead",
            RunSettings.num_rounds,
        )


def _own_copy(model: nn.Module) -> nn.Module:
    """Return a copy, with which `evaluate` may do as it likes, in evaluation mode.

    A model that cannot be copied is the one in training.
    """
    # for example weight_norm of torch.nn.utils
    with suppress(Exception):
        model = deepcopy(model)
    return model.eval()


def _start_of(
    strategy: Strategy,
    grid: Grid,
    initial: ArrayRecord,
    settings: RunSettings,
    evaluate_fn: EvaluateFn | None,
) -> Callable[[], object]:
    """Return the call that trains from the initial arrays to the end."""
    return partial(
        strategy.start,
        grid,
        initial,
        settings.num_rounds,
        settings.round_timeout_s,
        train_config=settings.train_config(),
        evaluate_config=settings.evaluate_config(),
        evaluate_fn=evaluate_fn,
    )


def _given_options(settings: RunSettings) -> dict[str, Any]:
    """Return the options that are set; for others presets have their own defaults."""
    options = {
        "device": settings.server_devices(),
        "model_bits": settings.models(),
        "pipeline_depth": settings.pipeline_depth or None,
        "optimizer_state": settings.optimizer_state or None,
    }
    return {name: value for name, value in options.items() if value is not None}


def _ending(error: BaseException) -> dict[str, Any]:
    """Return what ``results.json`` says about a run that an error ends."""
    if isinstance(error, RunFailed):
        return {"failed": str(error)}
    if isinstance(error, Exception):
        return {"failed": f"{type(error).__name__}: {error}"}
    return {"unfinished": True}


def _write_at_end(results: ResultsFile, **outcome: Any) -> None:
    """Write a run's results, and log where they are, or why they are not.

    Raises
    ------
    OSError
    """
    try:
        results.write(**outcome)
    except OSError as error:
        logger.error("%s could not be written: %s", results.path, error)
        raise
    logger.info("Wrote %s", results.path)


def _about(strategy: SplitLearning) -> dict[str, Any]:
    """Return what ``results.json`` says about a run with halves."""
    about: dict[str, Any] = {
        "codec": strategy.codec.config(),
        "payload_digest": strategy.ledger.digest(),
    }
    if strategy.output_codec is not None:
        about["output_codec"] = strategy.output_codec.config()
    return about


def _endpoint_config(config: RunConfig) -> EndpointConfig:
    """Return the endpoint's settings; no batch is larger than `SplitClientApp` makes.

    A training loop of one's own may send more rows than its run-config's batch-size, as
    where a row is a token.
    """
    if "batch-size" in config:
        batch_size = read_settings(TurnSettings, config).batch_size
        config = {"split-max-train-rows": batch_size, **config}
    return EndpointConfig.from_run_config(config)
