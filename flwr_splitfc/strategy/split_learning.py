"""Split learning as a Flower strategy."""

from collections.abc import Iterable, Sequence
from logging import getLogger
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import Tensor, nn

from flwr_splitfc.codec import CutCodec, cut_codec
from flwr_splitfc.exchange import (
    CopiedHalves,
    DeviceStates,
    EndpointConfig,
    HalfTrainer,
    Ledger,
    SharedHalf,
    SplitEndpoint,
    SplitGrid,
    Traffic,
)
from flwr_splitfc.exchange.protocol.ticket import Purpose
from flwr_splitfc.exchange.server.budget_rules import BudgetRule, rules_text
from flwr_splitfc.exchange.server.device_states import OptimizerState
from flwr_splitfc.exchange.server.half_trainer import Update
from flwr_splitfc.model import (
    JoinedModel,
    LossFn,
    OptimizerFn,
    SchedulerFn,
    joined_state_dict,
)
from flwr_splitfc.run.progress import EvaluateFn, Progress
from flwr_splitfc.strategy.budgets import NodeConfigBudgets
from flwr_splitfc.strategy.checkpoint import (
    CheckpointError,
    CheckpointWriter,
    check_resumable,
    devices_state,
    load_checkpoint,
    random_state,
    restore_devices,
    restore_random_state,
)
from flwr_splitfc.strategy.history import History
from flwr_splitfc.strategy.round_robin import RoundRobin

logger = getLogger("flwr")


class SplitLearning(Strategy):
    """Devices train the first layers, one server half the rest.

    For every mini-batch the features at the cut go up and their gradient comes down;
    how they are coded is the `codec`. Which devices train in a round, and how their
    halves are combined, is left to another strategy, `devices`. By default devices take
    turns, and uncoded features make it vanilla split learning
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
        long as `start`.
    codec : CutCodec or str (default: "float32")
        What is done at the cut; see `flwr_splitfc.codec.cut_codec`.
    output_codec : CutCodec or str, optional
        Without `loss_fn`, what is done with the server half's output on its way down
        and with its gradient on the way up, which ``downlink_bits`` and ``uplink_bits``
        of this codec bind; default "float32".
    budgets : callable or sequence of callables, optional
        Rules by which a device's budgets in a round differ from the codec's, one after
        another: each gets a `DeviceRound` and gives ``(uplink_bits, downlink_bits)``,
        or None to leave them. Default `NodeConfigBudgets()`; ``()`` for none.
    devices : Strategy, optional
        Any Flower strategy, over the device halves; default `RoundRobin()`.
    shared_server_half : bool (default: True)
        Whether all devices train one server half, or each a copy of its own. Copies
        start each round from the same weights with a fresh optimizer; those of the
        devices whose replies arrived are averaged by samples at its end, whatever
        `devices` is.
    evaluate_every : int (default: 1)
        Devices evaluate, and ``evaluate_fn`` is called, every so many rounds and after
        the last.
    optimizer_state : "relay", "per-device" or "fresh", optional
        Where a device's optimizer state comes from: from the device before it, from its
        own last turn, or nowhere. Default: "relay" where devices take turns, otherwise
        "per-device". It holds for devices that give `connect` their optimizer, as
        `SplitClientApp` does.
    scheduler, accumulate_steps, max_grad_norm, device
        For the server half's optimizer, as in `flwr_splitfc.exchange.HalfTrainer`.
    seed : int (default: 0)
        Everything random at the cut and in the server half follows from it.
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
        end of `start`.

    Attributes
    ----------
    server_model : nn.Module
        The server half as trained so far.
    updates : list of Update
        With `record_updates`, the (round, device, step) of each mini-batch, in the
        order in which the server half took them.
    ledger : Ledger
        All traffic of the run.
    progress : Progress
        The rows of the run so far.

    Notes
    -----
    What a device taught a shared server half stays, also when the device fails later in
    its turn.

    Examples
    --------
    In a `ServerApp`::

        strategy = SplitLearning(ServerHalf(), nn.CrossEntropyLoss(), partial(torch.optim.Adam, lr=1e-3))
        result = strategy.start(grid, ArrayRecord(DeviceHalf().state_dict()), num_rounds=50)
    """

    def __init__(
        self,
        server_model: nn.Module,
        loss_fn: LossFn | None,
        optimizer: OptimizerFn,
        *,
        codec: CutCodec | str = "float32",
        output_codec: CutCodec | str | None = None,
        budgets: BudgetRule | Sequence[BudgetRule] | None = None,
        devices: Strategy | None = None,
        shared_server_half: bool = True,
        evaluate_every: int = 1,
        optimizer_state: OptimizerState | None = None,
        scheduler: SchedulerFn | None = None,
        accumulate_steps: int = 1,
        max_grad_norm: float | None = None,
        device: torch.device | str | None = None,
        seed: int = 0,
        endpoint: EndpointConfig | None = None,
        record_updates: bool = False,
        checkpoint: str | Path | None = None,
        save_to: str | Path | None = None,
    ) -> None:
        if loss_fn is not None and output_codec is not None:
            raise ValueError(
                "output_codec is for loss_fn=None: with a loss_fn the output stays on the server"
            )
        self.half = HalfTrainer(
            server_model,
            loss_fn,
            optimizer,
            scheduler=scheduler,
            accumulate_steps=accumulate_steps,
            max_grad_norm=max_grad_norm,
            device=device,
            seed=seed,
        )
        self.half.record_updates = record_updates
        self.server_model = self.half.model
        self.codec = cut_codec(codec) if isinstance(codec, str) else codec
        output_codec = output_codec or "float32"
        output_codec = (
            cut_codec(output_codec) if isinstance(output_codec, str) else output_codec
        )
        self.output_codec = output_codec if loss_fn is None else None
        budgets = NodeConfigBudgets() if budgets is None else budgets
        self.budgets = (budgets,) if callable(budgets) else tuple(budgets)
        self.devices = RoundRobin() if devices is None else devices
        self.shared_server_half = shared_server_half
        self.evaluate_every = evaluate_every
        self.optimizer_state: OptimizerState = optimizer_state or (
            "relay" if isinstance(self.devices, RoundRobin) else "per-device"
        )
        self.ledger = Ledger()
        self.progress = Progress(0, self.ledger, evaluate_every=evaluate_every)
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        self.save_to = None if save_to is None else Path(save_to)
        if self.checkpoint is not None:
            check_resumable(self.devices)
        self._seed, self._endpoint_config = seed, endpoint
        self._states = DeviceStates(self.optimizer_state)
        self._history = History()
        self._rounds_done = 0
        self._trained: MetricRecord | None = None
        self._evaluation: MetricRecord | None = None

    # -- Strategy
    # --------------------------------------------------------------------------------

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
        `checkpoint`, rounds that are done are not done again, and the `Result` holds
        all of them.

        Raises
        ------
        CheckpointError
            If the checkpoint is damaged, foreign, or of a run with other settings; it
            is left as it is.
        """
        self.ledger = Ledger()
        self._states = DeviceStates(self.optimizer_state)
        self._history = History()
        self.progress = Progress(
            num_rounds, self.ledger, evaluate_every=self.evaluate_every
        )
        endpoint = SplitEndpoint(
            SharedHalf(self.half)
            if self.shared_server_half
            else CopiedHalves(self.half),
            self.codec,
            output_codec=self.output_codec,
            ledger=self.ledger,
            states=self._states,
            seed=self._seed,
            config=self._endpoint_config,
        )
        arrays = self._resume(initial_arrays)
        with endpoint, CheckpointWriter(self.checkpoint) as writer:
            result = super().start(
                SplitGrid(grid, endpoint, self.budgets),
                arrays,
                max(num_rounds - self._rounds_done, 0),
                timeout,
                train_config,
                evaluate_config,
                self._end_of_round(evaluate_fn, writer),
            )
        self._log_devices()
        self._history.fill(result)
        result.arrays = result.arrays or arrays
        if self.save_to is not None:
            self.save(self.save_to, result.arrays)
        return result

    def _log_devices(self) -> None:
        """What each device's sessions came to; bits per entry are those of training."""
        trained = self.ledger.devices("train")
        for device, traffic in self.ledger.devices().items():
            training = trained.get(device, Traffic())
            logger.info(
                "Device %s: %d sessions, %d steps, bits/entry up %.3f down %.3f, %.2f MB up, %.2f MB down, "
                "%d reconnections",
                *(device, traffic.sessions, traffic.steps),
                *(training.uplink_bits_per_entry, training.downlink_bits_per_entry),
                *(
                    traffic.uplink_bytes.total() / 1e6,
                    traffic.downlink_bytes.total() / 1e6,
                    traffic.reconnects,
                ),
            )

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As `devices` says."""
        server_round += self._rounds_done
        if isinstance(grid, SplitGrid):
            grid.server_round = server_round
        return self.devices.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The device halves combined as `devices` says; bytes, steps and loss as the server measured them."""
        server_round += self._rounds_done
        arrays, metrics = self.devices.aggregate_train(server_round, replies)
        self._trained = self._with_totals(metrics, server_round, "train")
        return arrays, self._trained

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As `devices` says, in the rounds that evaluate."""
        server_round += self._rounds_done
        if not self.progress.due(server_round):
            return []
        return self.devices.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """As `devices` says, with the bytes of the round's evaluation."""
        server_round += self._rounds_done
        replies = list(replies)
        self._evaluation = None
        if replies:
            metrics = self.devices.aggregate_evaluate(server_round, replies)
            self._evaluation = self._with_totals(metrics, server_round, "evaluate")
        return self._evaluation

    def summary(self) -> None:
        """Log the settings."""
        logger.info("\t├──> At the cut: %r", self.codec)
        if self.output_codec is not None:
            logger.info(
                "\t├──> Labels and last layers on devices, output: %r",
                self.output_codec,
            )
        logger.info("\t├──> Budgets by device and round: %s", rules_text(self.budgets))
        logger.info(
            "\t├──> Server half on %s, evaluation every %d rounds",
            self.half.device,
            self.evaluate_every,
        )
        logger.info("\t├──> Device optimizer state: %s", self.optimizer_state)
        logger.info("\t├──> Device halves: %s", type(self.devices).__name__)
        self.devices.summary()

    @property
    def updates(self) -> list[Update]:
        """The shared server half's mini-batches, in order."""
        return self.half.updates

    # -- rounds that are done
    # --------------------------------------------------------------------

    def _end_of_round(
        self, evaluate_fn: EvaluateFn | None, writer: CheckpointWriter
    ) -> EvaluateFn:
        """Flower's own hook: evaluate, report, and write down what has happened."""
        report = self.progress.watch(evaluate_fn, lambda: self._evaluation)

        def end_of_round(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            if server_round == 0 and self._history.lines:
                return None  # a run that goes on evaluated its start long ago
            server_round += self._rounds_done
            central = report(server_round, arrays)
            self._history.add(
                server_round,
                self.ledger,
                self.progress,
                self._trained,
                self._evaluation,
                central,
            )
            writer.save(lambda: self._state(server_round, arrays))
            return central

        return end_of_round

    def _settings(self) -> dict[str, str]:
        """What two runs must share for one to go on where the other stopped."""
        return {
            "strategy": type(self).__name__,
            "codec": repr(self.codec),
            "output_codec": repr(self.output_codec),
            "budgets": rules_text(self.budgets),
            "devices": type(self.devices).__name__,
            "server half": "shared" if self.shared_server_half else "copied",
            "optimizer_state": self.optimizer_state,
            "seed": str(self._seed),
        }

    def _state(self, server_round: int, arrays: ArrayRecord) -> dict[str, Any]:
        return {
            "settings": self._settings(),
            "round": server_round,
            "arrays": dict(arrays.to_torch_state_dict()),
            "half": self.half.state_dict(),
            "device_states": self._states.state_dict(),
            "devices": devices_state(self.devices),
            "random": random_state(),
            "history": self._history.lines,
            "device_traffic": self.ledger.devices_to_json(),
        }

    def _resume(self, initial_arrays: ArrayRecord) -> ArrayRecord:
        """Take up the checkpoint, if there is one; the device half to start from."""
        self._rounds_done = 0
        state = None if self.checkpoint is None else load_checkpoint(self.checkpoint)
        if state is None:
            return initial_arrays
        settings = self._settings()
        if changed := [
            key for key in settings if state["settings"].get(key) != settings[key]
        ]:
            was = ", ".join(
                f"{key} {state['settings'].get(key)!r}, now {settings[key]!r}"
                for key in changed
            )
            raise CheckpointError(
                f"the checkpoint in {self.checkpoint} is of another run: {was}"
            )
        try:
            self.half.load_state_dict(state["half"])
            self._states.load_state_dict(state["device_states"])
            restore_devices(self.devices, state["devices"])
            self.ledger.restore_devices(state["device_traffic"])
            arrays = ArrayRecord(state["arrays"])
        except (KeyError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"the checkpoint in {self.checkpoint} does not fit this run: {error}"
            ) from error
        self._history.lines = list(state["history"])
        self._history.restore(self.ledger, self.progress)
        restore_random_state(state["random"])
        self._rounds_done = int(state["round"])
        logger.info(
            "Goes on after round %d, from %s", self._rounds_done, self.checkpoint
        )
        return arrays

    # -- the joined model
    # ------------------------------------------------------------------------

    def joined_model(
        self, device_model: nn.Module, arrays: ArrayRecord | None = None
    ) -> JoinedModel:
        """The whole model: `device_model`, loaded with `arrays` if given, before the server half, or around it.

        The server half is the one in training, on its device; `device_model` is moved
        there.
        """
        if arrays is not None:
            device_model.load_state_dict(arrays.to_torch_state_dict())
        return JoinedModel(device_model.to(self.half.device), self.server_model)

    def predict(self, features: Tensor) -> Tensor:
        """What the server half makes of features (B, ...) in evaluation mode: `Session.predict`, centrally."""
        return self.half.predict(features)

    def joined_state_dict(self, arrays: ArrayRecord) -> dict[str, Tensor]:
        """The state dict of the `JoinedModel` of a device half's `arrays` and the server half, on the CPU."""
        return joined_state_dict(
            arrays.to_torch_state_dict().items(), self.server_model.state_dict().items()
        )

    def save(self, folder: str | Path, arrays: ArrayRecord) -> None:
        """Write the halves' state dicts and their merge, for ``torch.load(..., weights_only=True)``.

        ``device.pt``, ``server.pt`` and ``joined.pt`` (a `JoinedModel`'s). Where no
        entry of the halves has the same name, as with halves of `split_at`,
        ``unsplit.pt`` has them under their own: it loads into the model that was cut.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        device = {
            name: tensor.cpu() for name, tensor in arrays.to_torch_state_dict().items()
        }
        server = {
            name: tensor.cpu()
            for name, tensor in self.server_model.state_dict().items()
        }
        files = {
            "device.pt": device,
            "server.pt": server,
            "joined.pt": self.joined_state_dict(arrays),
        }
        if self.output_codec is None and not device.keys() & server.keys():
            files["unsplit.pt"] = {**device, **server}
        for name, entries in files.items():
            torch.save(entries, folder / name)
        logger.info("Saved %s in %s", ", ".join(files), folder)

    def _with_totals(
        self, metrics: MetricRecord | None, server_round: int, purpose: Purpose
    ) -> MetricRecord:
        """Bytes add up over devices, so the averages that `devices` made of them give way to the ledger's sums."""
        traffic = self.ledger.of(server_round, purpose)
        total = MetricRecord({**(metrics or {}), **traffic.metrics()})
        total.pop("codec_seconds", None)
        total["failures"] = len(self.ledger.failures(server_round))
        if purpose == "train" and traffic.loss_rows:
            total["train_loss"] = traffic.loss
        return total
