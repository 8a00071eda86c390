"""Split learning as a Flower strategy."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from logging import getLogger
from math import ceil
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import Tensor, nn

from flwr_splitfc.callbacks import Callback, RunSoFar
from flwr_splitfc.callbacks.best_model import check_model_folders
from flwr_splitfc.callbacks.callback import check_callbacks
from flwr_splitfc.callbacks.notifier import Notifier, RunStopped
from flwr_splitfc.codec import CutCodec, ModelCodec
from flwr_splitfc.exchange import (
    CopiedHalves,
    EndpointConfig,
    HalfTrainer,
    Halves,
    Ledger,
    SharedHalf,
    SplitEndpoint,
    SplitGrid,
    StepListener,
)
from flwr_splitfc.exchange.protocol.whole_numbers import with_whole_numbers
from flwr_splitfc.exchange.server.accounts.budget_rules import BudgetRule
from flwr_splitfc.exchange.server.grid.reply_checks import ReplyChecks
from flwr_splitfc.exchange.server.half.feature_shapes import FeatureShape
from flwr_splitfc.exchange.server.half.half_steps import Update
from flwr_splitfc.exchange.server.turn.device_states import OptimizerState
from flwr_splitfc.model import (
    DecoupledHalf,
    JoinedModel,
    LossFn,
    OptimizerFn,
    SchedulerFn,
    joined_state_dict,
    without_auxiliary,
)
from flwr_splitfc.model.structures import Structure
from flwr_splitfc.run.held_folder import check_writable
from flwr_splitfc.run.progress import EvaluateFn, Progress
from flwr_splitfc.run.run_log import run_log
from flwr_splitfc.settings import under_key
from flwr_splitfc.strategy.checkpoint import CheckpointError
from flwr_splitfc.strategy.checkpoint_writer import CheckpointWriter
from flwr_splitfc.strategy.counted_means import counted_means
from flwr_splitfc.strategy.failed_rounds import RunFailed
from flwr_splitfc.strategy.folder_lock import locked
from flwr_splitfc.strategy.innermost import innermost
from flwr_splitfc.strategy.measured import log_devices, with_totals
from flwr_splitfc.strategy.needed_metrics import needed_metrics
from flwr_splitfc.strategy.optimizer_settings import optimizer_settings
from flwr_splitfc.strategy.overflow import NotCombined, combined
from flwr_splitfc.strategy.resumable import check_resumable
from flwr_splitfc.strategy.resume import resume
from flwr_splitfc.strategy.round_robin import RoundRobin
from flwr_splitfc.strategy.run_description import log_settings, settings_texts
from flwr_splitfc.strategy.run_state import RunState
from flwr_splitfc.strategy.saved_halves import save_halves
from flwr_splitfc.strategy.sent_configs import SentConfigs
from flwr_splitfc.strategy.split_settings import (
    TorchDevices,
    as_codec,
    as_depth,
    as_model_codec,
    as_output_codec,
    as_rules,
    as_seed,
    as_torch_devices,
    check_copies,
    check_decoupled,
    check_devices,
    check_endpoint,
    check_initial_arrays,
    check_integers,
    check_parts,
    check_send_every,
    default_optimizer_state,
)
from flwr_splitfc.strategy.waiting import wait_for_sampled

logger = getLogger("flwr")


class SplitLearning(Strategy):
    """Devices train the first layers, one server half the rest.

    For every mini-batch the features at the cut go up and their gradient comes down.
    The `codec` says how they are coded. Another strategy, `devices`, says which devices
    train in a round and how their halves are combined. By default devices take turns
    and features are not compressed: vanilla split learning
    (https://arxiv.org/abs/1812.00564).

    Parameters
    ----------
    server_model : nn.Module
        The layers after the cut. It is trained in place, on CUDA where present.
    loss_fn : callable or None
        ``loss_fn(server_model(features), labels)``, a scalar. None for U-shaped split
        learning: devices have the last layers, too, and the loss; they train with
        ``server.forward``, and labels stay with them.
    optimizer : callable
        ``optimizer(parameters)`` makes the server half's optimizer. Its state lives as
        long as the strategy: a second `start` goes on with it.
    codec : CutCodec or str (default: "float32")
        What is done at the cut; see `flwr_splitfc.codec.cut_codec`.
    output_codec : CutCodec or str, optional
        Without `loss_fn`, what is done with the server half's output on its way down
        and with its gradient on the way up, which ``downlink_bits`` and ``uplink_bits``
        of this codec bind; default "float32".
    model_bits : int or ModelCodec, optional
        Bits per entry of the device half on its way down, of its change on the way up,
        and of its optimizer's state: 2 to 16, or 32 for arrays as they are; a
        `ModelCodec` has a number for each. Messages of `devices` that have several
        `ArrayRecord` go as they are, whatever it is. Default 4, 3 and 3 where `codec`
        spends budgets; 32 where it is "float32", which compresses nothing; and 6, 5 and
        4 otherwise. Devices need `model_codec_mod`, as `SplitClientApp` has it; others
        get and return arrays as they are.
    budgets : callable or sequence of callables, optional
        Rules by which a device's budgets in a round differ from the codec's, one after
        another: each gets a `DeviceRound` and gives ``(uplink_bits, downlink_bits)``,
        or None to leave them. Default `NodeConfigBudgets()`; ``()`` for none.
    devices : Strategy, optional
        Any Flower strategy, over the device halves; default `RoundRobin()`. A `start`
        of its own is not called.
    shared_server_half : bool (default: True)
        Whether all devices train one server half, or each a copy of its own. Copies
        start each round from the same weights with a fresh optimizer; those of the
        devices whose replies arrived are averaged by samples at its end, whatever
        `devices` is. Where it combines no device half, the server half stays, too.
    evaluate_every : int (default: 1)
        Devices evaluate, and ``evaluate_fn`` is called, every so many rounds and after
        the last.
    pipeline_depth : int, optional
        How many mini-batches a device may have under way at once. While the answer to
        one travels, it computes and sends the next, with weights that are up to
        ``pipeline_depth - 1`` steps old. 1, the default, waits for each answer. It is
        for a loss of the server's and the transport "stream".
    decoupled : bool (default: False)
        Whether device halves learn from an auxiliary head and a loss of their own.
        Features go up with the bits of both budgets, no gradient comes down, and no
        weight is old; the default of `pipeline_depth` is then 16, in a stream. Device
        models are a `DecoupledHalf`. For a loss of the server's.
    send_every : int (default: 1)
        With `decoupled`, of how many mini-batches of a turn one goes up, the first: the
        device half learns from each, the server half from that one.
    merge_steps : int (default: 1)
        How many mini-batches that wait for the shared server half at the same time make
        one step of its optimizer, of the mean of their gradients. Each device gets the
        gradient of its own loss. It is for a loss of the server's and a half without
        batch normalisation. Which batches meet is chance: a run cannot be repeated.
    replay_steps : int (default: 0)
        Further steps of the shared server half after each mini-batch, on mini-batches
        of before, whose features it keeps. They cost no byte and no waiting, but the
        server's time; see `flwr_splitfc.exchange.HalfTrainer`. For a loss of the
        server's.
    max_failed_rounds : int (default: 1)
        So many rounds in a row in which every device failed end the run with
        `RunFailed`. Where devices take turns, it counts as a round that each had its
        turn.
    optimizer_state : "relay", "per-device" or "fresh", optional
        Where a device's optimizer state comes from: from the device before it, from its
        own last turn, or nowhere; then none is sent. Of several devices at once, the
        last by name is the one before. Default: "relay" where devices take turns, and
        no strategy of Flower's for differential privacy is around them, otherwise
        "per-device". It holds for devices that give `connect` their optimizer, as
        `SplitClientApp` does.
    scheduler, accumulate_steps, max_grad_norm
        For the server half's optimizer, as in `flwr_splitfc.exchange.HalfTrainer`. A
        copy's schedule and accumulated gradients end with its turn.
    device : torch.device, str or sequence of these, optional
        Where the server half is: CUDA where present, otherwise the CPU. Copies are
        spread over several, such as ``["cuda:0", "cuda:1"]``, and train at the same
        time; the first has the average.
    seed : int (default: 0)
        Everything random at the cut and in the server half follows from it.
    feature_shape : sequence of int, optional
        The shape of a sample's features at the cut, such as (32, 6, 6), or (None, 64)
        for sequences of any length; a tuple, list or dict of shapes where the features
        are such tensors. Others are refused. By default the server half takes what its
        forward pass does.
    endpoint : EndpointConfig, optional
        Where sessions are served, how devices reach it, TLS and limits; the default is
        for devices on this machine, as in the simulation engine.
    record_updates : bool (default: False)
        Write down in `updates` which device's batch the shared server half was trained
        on when.
    checkpoint : path, optional
        A folder in which the run's state is replaced after each round. `start` goes on
        from what it finds there: the round after the last complete one, as if nothing
        had happened. Strategies in `devices` with state of their own need methods
        ``state_dict`` and ``load_state_dict``; of Flower's, `FedAvg`, `FedProx`,
        `FedAdam`, `FedYogi`, `FedAdagrad`, `FedAvgM`, `FedMedian`, `FedTrimmedAvg`,
        `Krum`, `MultiKrum` and `Bulyan` are known.
    save_to : path, optional
        A folder for ``device.pt``, ``server.pt`` and ``joined.pt`` (state dicts) at the
        end of `start`. Where Ctrl-C or an error ends it, they are those of the last
        finished round.
    callbacks : sequence of Callback, optional
        What listens to the run, and may end it: see `flwr_splitfc.callbacks`.

    Attributes
    ----------
    server_model : nn.Module
        The server half as trained so far.
    updates : list of Update
        With `record_updates`, the (round, device, step) of each mini-batch, in the
        order in which the server half took them.
    device_settings : dict of str to str
        What devices train by, as far as it is known here: with `checkpoint`, a run goes
        on where that is the same. `SplitServerApp` fills it in.
    ledger : Ledger
        All traffic of the run.
    progress : Progress
        The rows of the run so far.
    stopped : str
        Why a callback ended the run; empty if none did.

    Notes
    -----
    What a device taught a shared server half stays, also when the device fails later in
    its turn.

    Examples
    --------
    In a `ServerApp`::

        adam = partial(torch.optim.Adam, lr=1e-3)
        strategy = SplitLearning(ServerHalf(), nn.CrossEntropyLoss(), adam)
        device_half = ArrayRecord(DeviceHalf().state_dict())
        result = strategy.start(grid, device_half, num_rounds=50)
    """

    def __init__(
        self,
        server_model: nn.Module,
        loss_fn: LossFn | None,
        optimizer: OptimizerFn,
        *,
        codec: CutCodec | str = "float32",
        output_codec: CutCodec | str | None = None,
        model_bits: int | ModelCodec | None = None,
        budgets: BudgetRule | Sequence[BudgetRule] | None = None,
        devices: Strategy | None = None,
        shared_server_half: bool = True,
        evaluate_every: int = 1,
        pipeline_depth: int | None = None,
        decoupled: bool = False,
        send_every: int = 1,
        max_failed_rounds: int = 1,
        optimizer_state: OptimizerState | None = None,
        scheduler: SchedulerFn | None = None,
        merge_steps: int = 1,
        replay_steps: int = 0,
        accumulate_steps: int = 1,
        max_grad_norm: float | None = None,
        device: TorchDevices = None,
        seed: int = 0,
        feature_shape: FeatureShape = None,
        endpoint: EndpointConfig | None = None,
        record_updates: bool = False,
        checkpoint: str | Path | None = None,
        save_to: str | Path | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        check_parts(server_model, loss_fn, optimizer, scheduler)
        self.devices = RoundRobin() if devices is None else devices
        check_devices(self.devices)
        check_callbacks(callbacks)
        check_model_folders(callbacks, save_to)
        check_endpoint(endpoint)
        check_integers(
            evaluate_every=evaluate_every,
            send_every=send_every,
            max_failed_rounds=max_failed_rounds,
            merge_steps=merge_steps,
            replay_steps=replay_steps,
            accumulate_steps=accumulate_steps,
        )
        seed = as_seed(seed)
        if not shared_server_half:
            check_copies(merge_steps, replay_steps)
        torch_devices = as_torch_devices(device, shared_server_half)
        self.half = HalfTrainer(
            server_model,
            loss_fn,
            optimizer,
            scheduler=scheduler,
            accumulate_steps=accumulate_steps,
            max_grad_norm=max_grad_norm,
            device=torch_devices[0] if torch_devices else None,
            seed=seed,
            feature_shape=feature_shape,
            merge_steps=merge_steps,
            replay_steps=replay_steps,
        )
        if not shared_server_half:
            # now, not in each device's turn: an optimizer may be of the original alone
            self.half.copy(seed)
        self.half.record_updates = record_updates
        # now: training changes a learning rate
        self._optimizer_settings = optimizer_settings(
            self.half.optimizer, self.half.scheduler
        )
        self.device_settings: dict[str, str] = {}
        self._torch_devices = torch_devices
        self.server_model = self.half.model
        self.shared_server_half = shared_server_half

        self.codec = as_codec(codec)
        self.output_codec = as_output_codec(output_codec, loss_fn)
        self.model_codec = as_model_codec(model_bits, self.codec)
        self.budgets = as_rules(budgets)

        if decoupled:
            check_decoupled(loss_fn, self.budgets)
        check_send_every(send_every, decoupled)
        self.decoupled = decoupled
        self.send_every = send_every
        self.pipeline_depth = as_depth(pipeline_depth, loss_fn, endpoint, decoupled)

        self.evaluate_every = evaluate_every
        self.max_failed_rounds = max_failed_rounds
        self.optimizer_state = optimizer_state or default_optimizer_state(self.devices)
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        self.save_to = None if save_to is None else Path(save_to)
        self.callbacks = tuple(callbacks)
        # now, not after hours of training
        if self.checkpoint is not None:
            check_resumable(self.devices)
        self._endpoint_config = endpoint
        self._run = self._new_run(num_rounds=0)
        self._so_far = self._new_run_so_far(ArrayRecord())

    @property
    def ledger(self) -> Ledger:
        """All traffic of the run."""
        return self._run.ledger

    @property
    def progress(self) -> Progress:
        """The rows of the run so far."""
        return self._run.progress

    @property
    def stopped(self) -> str:
        """Why a callback ended the run; empty if none did."""
        return self._so_far.stopped

    @property
    def updates(self) -> list[Update]:
        """The shared server half's mini-batches, in order."""
        return self.half.updates

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
    ) -> Result:
        """Train for `num_rounds`, with the split endpoint open meanwhile.

        Parameters are those of `Strategy.start`; `initial_arrays` and what
        `evaluate_fn` gets are the device half (see `joined_model` for the whole).
        Sessions still open after `timeout` seconds of a round are cancelled. With
        `checkpoint`, rounds that are done are not done again, the `Result` holds all of
        them, and what they changed in `train_config` and `evaluate_config` is restored
        where these are given as they were at the run's start.

        Raises
        ------
        CheckpointError
            If the checkpoint is damaged, foreign, or of a run with other settings, or
            another run writes into its folder, or nobody can; it is left as it is. Also
            if the run could not go on from its own first checkpoints.
        RunFailed
            If every device failed in too many rounds, or in all, or too few devices
            came. Nothing is saved but the checkpoint, which is that of the last round
            before.
        SimulationBroken
            If a process of Flower's simulation engine died, at the end of that round.
        ValueError
            If `num_rounds` is no whole number, `initial_arrays` are those of the whole
            model, a config is no `ConfigRecord`, `save_to` is no folder to write into,
            or `evaluate_fn` returns no metrics.
        """
        check_integers(num_rounds=num_rounds)
        check_initial_arrays(initial_arrays, self.server_model)
        # now, not after hours of training
        if self.save_to is not None:
            with under_key("save_to"):
                check_writable(self.save_to)
        configs = SentConfigs(train_config, evaluate_config)
        with locked(self.checkpoint), self._saved_at_end():
            self._run = self._new_run(num_rounds, initial_arrays, configs)
            # before the endpoint is opened: a checkpoint of another run ends it here
            arrays = self._resume(initial_arrays)
            so_far = self._so_far = self._new_run_so_far(arrays)
            name = type(self).__name__
            with (
                run_log(name, self.progress, arrays),
                Notifier(self.callbacks, so_far) as notifier,
                self._endpoint(notifier.on_step) as endpoint,
                CheckpointWriter(self.checkpoint) as writer,
            ):
                rounds_left = max(num_rounds - self._run.rounds_done, 0)
                try:
                    result = super().start(
                        self._grid(grid, endpoint, initial_arrays),
                        arrays,
                        0 if so_far.stopped else rounds_left,
                        timeout,
                        configs.train,
                        configs.evaluate,
                        notifier.watch(self._run.end_of_round(evaluate_fn, writer)),
                    )
                except RunStopped:
                    result = Result()
            return self._completed(result)

    def _completed(self, result: Result) -> Result:
        """Return Flower's result with what it lacks, such as the rounds before."""
        self._run.failed_rounds.check_end()
        log_devices(self.ledger)
        self._run.history.fill(result)
        # Flower's result has none where no round was left, or no turn succeeded
        result.arrays = self._so_far.arrays
        return result

    @contextmanager
    def _saved_at_end(self) -> Iterator[None]:
        """Save the halves at the end, and where an error comes after a round."""
        try:
            yield
        except (CheckpointError, RunFailed):
            raise
        # whatever it is, the rounds are done: Ctrl-C, `evaluate_fn`, an accountant
        except BaseException:
            if self.progress.rounds:
                self._save_result()
            raise
        self._save_result()

    def _save_result(self) -> None:
        folder = self.save_to
        if folder is None:
            return
        try:
            self._so_far.save(folder)
            logger.info("Saved the model in %s", folder)
        except OSError as error:
            # the caller has the result yet
            logger.error("The halves could not be saved in %s: %s", folder, error)

    def summary(self) -> None:
        """Log the settings."""
        log_settings(self)
        self.devices.summary()

    def _new_run(
        self,
        num_rounds: int,
        arrays: ArrayRecord | None = None,
        configs: SentConfigs | None = None,
    ) -> RunState:
        return RunState(
            self.half,
            self.devices,
            num_rounds,
            evaluate_every=self.evaluate_every,
            codec=self.codec,
            output_codec=self.output_codec,
            optimizer_state=self.optimizer_state,
            max_failed_rounds=self.max_failed_rounds,
            settings={
                **settings_texts(self),
                **self._optimizer_settings,
                **self.device_settings,
            },
            arrays=arrays,
            configs=configs,
        )

    def _new_run_so_far(self, arrays: ArrayRecord) -> RunSoFar:
        return RunSoFar(self.progress, arrays, self._save_finished)

    def _save_finished(self, folder: Path, arrays: ArrayRecord) -> None:
        """Write the halves after the last finished round, as `save` does.

        `arrays` is the device half. A round under way has trained the server half on.
        """
        self._save(folder, arrays, self._run.finished_half())

    @property
    def _keeps_half(self) -> bool:
        """Whether a round may need the server half as it was before it."""
        # copies are averaged before device halves are combined, which may fail
        trains_copies = not self.shared_server_half
        # a round that does not end must not show in what is saved
        may_save = self.save_to is not None or bool(self.callbacks)
        return trains_copies or may_save

    def _endpoint(self, on_step: StepListener | None) -> SplitEndpoint:
        halves: Halves = SharedHalf(self.half)
        if not self.shared_server_half:
            halves = CopiedHalves(self.half, self._torch_devices)
        return SplitEndpoint(
            halves,
            self.codec,
            output_codec=self.output_codec,
            ledger=self.ledger,
            states=self._run.device_states,
            state_bits=self.model_codec.state,
            pipeline_depth=self.pipeline_depth,
            decoupled=self.decoupled,
            send_every=self.send_every,
            seed=self.half.seed,
            config=self._endpoint_config,
            on_step=on_step,
        )

    def _grid(
        self, grid: Grid, endpoint: SplitEndpoint, arrays: ArrayRecord
    ) -> SplitGrid:
        # not of the base class: a strategy may weight replies by nothing
        weight = getattr(innermost(self.devices), "weighted_by_key", "")
        checks = ReplyChecks(arrays, weight, needed_metrics(self.devices))
        return SplitGrid(grid, endpoint, self.budgets, checks, self.model_codec, arrays)

    def _resume(self, initial_arrays: ArrayRecord) -> ArrayRecord:
        """Go on from the checkpoint, if there is one; return the device half."""
        if self.checkpoint is None:
            return initial_arrays
        arrays = resume(self._run, self.checkpoint, initial_arrays)
        if arrays is None:
            return initial_arrays
        # averages, in a checkpoint of a former version
        return with_whole_numbers(arrays, initial_arrays)

    # Flower counts the rounds of this process, we those of the whole run.

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the messages of `devices`.

        Raises
        ------
        TypeError
            If `grid` is not the one that `start` makes.
        """
        server_round += self._run.rounds_done
        self._run.begin_round(arrays, keeps_half=self._keeps_half)
        if not isinstance(grid, SplitGrid):
            raise TypeError(self._outer_strategy())
        # the tickets' round: not every strategy tells it in its messages
        grid.server_round = server_round
        # devices in turn wait once: later turns go to those that are left
        if not isinstance(innermost(self.devices), RoundRobin):
            wait_for_sampled(grid, self.devices, "train")
        messages = self.devices.configure_train(server_round, arrays, config, grid)
        messages = list(messages)
        self._run.turns_of_all = self._turns_of_all(len(messages), grid)
        return messages

    def _turns_of_all(self, turns: int, grid: Grid) -> int:
        """Return after how many rounds of so many turns each device has had one."""
        if turns == 1 or isinstance(innermost(self.devices), RoundRobin):
            return ceil(len(list(grid.get_node_ids())) / max(turns, 1))
        return 1

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the device halves as `devices` combines them, and the round's metrics.

        Bytes, steps and loss are those that the server measured.

        Raises
        ------
        RunFailed
            If every device failed once too often, or what comes of their halves is not
            finite.
        """
        server_round += self._run.rounds_done
        replies = list(replies)
        self._run.failed_rounds.check(server_round, replies, self._run.turns_of_all)
        traffic = self.ledger.of(server_round, "train")
        self._run.standstill.check_steps(server_round, traffic.steps, replies)
        if traffic.downlink_bytes["gradient"] or self.decoupled:
            self._run.standstill.check(server_round, self._run.sent, replies)
        arrays, averages = self._combined(server_round, replies)
        metrics = with_totals(averages, self.ledger, server_round, "train")
        self._run.metrics.train = metrics
        return arrays, metrics

    def _combined(
        self, server_round: int, replies: list[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return what `devices` makes of replies; nothing where that cannot be."""
        run = self._run
        try:
            arrays, averages = combined(self.devices, server_round, replies, run.sent)
        except NotCombined as error:
            self._undo_average()
            run.failed_rounds.fail(server_round, str(error), run.turns_of_all)
            return None, None
        if arrays is None:
            self._undo_average()
        return arrays, averages

    def _undo_average(self) -> None:
        """Take back the average of copies, which is of halves that are not combined."""
        if not self.shared_server_half:
            self._run.restore_half()

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the messages of `devices`, in the rounds that evaluate."""
        server_round += self._run.rounds_done
        if not self.progress.due(server_round):
            return []
        wait_for_sampled(grid, self.devices, "evaluate")
        return self.devices.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Return the metrics of `devices`, with the bytes of the round's evaluation."""
        server_round += self._run.rounds_done
        # Flower asks in rounds without evaluation, too
        replies = list(replies)
        if not replies:
            return None
        # with an auxiliary head a device may evaluate alone
        if not self.decoupled:
            predictions = self.ledger.of(server_round, "evaluate").steps
            self._run.standstill.check_predictions(server_round, predictions, replies)
        averages = self.devices.aggregate_evaluate(server_round, replies)
        averages = counted_means(averages, self.devices, server_round, replies)
        metrics = with_totals(averages, self.ledger, server_round, "evaluate")
        self._run.metrics.evaluate = metrics
        return metrics

    def _outer_strategy(self) -> str:
        name = type(self).__name__
        return (
            f"a strategy that is wrapped around {name}, or another start() than its "
            "own, opens no split endpoint. Wrap the strategy that combines the device "
            f"halves instead: {name}(..., devices="
            "DifferentialPrivacyServerSideFixedClipping(FedAvg(), ...)), and call the "
            f"start() of {name}"
        )

    def joined_model(
        self, device_model: nn.Module, arrays: ArrayRecord | None = None
    ) -> JoinedModel:
        """Return the whole model: `device_model` before the server half, or around it.

        `device_model` is loaded with `arrays` if given, and moved to the server half's
        device. The server half is the one in training, and both are put into evaluation
        mode: its next step ends that. An auxiliary head is left out.
        """
        if isinstance(device_model, DecoupledHalf):
            device_model = device_model.device
        if arrays is not None:
            device_model.load_state_dict(self._device_entries(arrays))
        joined = JoinedModel(device_model.to(self.half.device), self.server_model)
        return joined.eval()

    def predict(self, features: Structure) -> Structure:
        """Return what the server half makes of features (B, ...) in evaluation mode.

        It is `Session.predict`, centrally.
        """
        return self.half.predict(features)

    def joined_state_dict(self, arrays: ArrayRecord) -> dict[str, Tensor]:
        """Return the state dict of the whole model (`JoinedModel`), on the CPU.

        Its device half is `arrays`, its server half the one in training.
        """
        return joined_state_dict(
            self._device_entries(arrays).items(), self.server_model.state_dict().items()
        )

    def save(self, folder: str | Path, arrays: ArrayRecord) -> None:
        """Write the state dicts, for ``torch.load(..., weights_only=True)``.

        ``device.pt``, ``server.pt`` and ``joined.pt`` (a `JoinedModel`'s). Where no
        entry of the halves has the same name, as with halves of `split_at`,
        ``unsplit.pt`` has them under their own: it loads into the model that was cut.
        """
        self._save(Path(folder), arrays, self.server_model.state_dict())

    def _save(
        self, folder: Path, arrays: ArrayRecord, server: dict[str, Tensor]
    ) -> None:
        device = self._device_entries(arrays)
        has_tail = self.output_codec is not None
        save_halves(folder, device, server, has_tail=has_tail)

    def _device_entries(self, arrays: ArrayRecord) -> dict[str, Tensor]:
        """Return the device half's state dict from the arrays that devices train."""
        entries = arrays.to_torch_state_dict()
        return without_auxiliary(entries.items()) if self.decoupled else dict(entries)
