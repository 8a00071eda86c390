"""A run as it goes on, and what a checkpoint keeps of it."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp.strategy import Strategy

from flwr_splitfc.codec import CutCodec
from flwr_splitfc.exchange import DeviceStates, HalfTrainer, Ledger
from flwr_splitfc.exchange.server.turn.device_states import OptimizerState
from flwr_splitfc.run.progress import EvaluateFn, Progress
from flwr_splitfc.strategy.checkpoint_checks import (
    check_finite_state,
    check_half,
    check_moments,
    check_rounds,
    check_settings,
    check_sizes,
    check_steps,
    check_updates,
)
from flwr_splitfc.strategy.checkpoint_writer import CheckpointWriter
from flwr_splitfc.strategy.failed_rounds import FailedRounds
from flwr_splitfc.strategy.history import History, RoundMetrics
from flwr_splitfc.strategy.random_state import random_state, restore_random_state
from flwr_splitfc.strategy.resumable import devices_state, remembered, restore_devices
from flwr_splitfc.strategy.sent_configs import SentConfigs
from flwr_splitfc.strategy.standstill import Standstill
from flwr_splitfc.strategy.state_tensors import copied


class RunState:
    """All that changes from round to round.

    Parameters
    ----------
    half : HalfTrainer
        The run's server half.
    devices : Strategy
        The strategy over the device halves, which may remember something.
    num_rounds : int
        Rounds that the run will take.
    evaluate_every : int
    codec : CutCodec
    output_codec : CutCodec or None
        Both as in `Progress`.
    optimizer_state : "relay", "per-device" or "fresh"
        As in `DeviceStates`.
    max_failed_rounds : int
        As in `FailedRounds`.
    settings : mapping of str to str
        What two runs must share for one to go on where the other stopped.
    arrays : ArrayRecord or None
        The device half, which what devices leave has to fit.
    configs : SentConfigs, optional
        What goes to devices beside it; empty by default.

    Attributes
    ----------
    ledger : Ledger
    progress : Progress
    failed_rounds : FailedRounds
    standstill : Standstill
    device_states : DeviceStates
    history : History
    rounds_done : int
        Rounds of former processes. Flower's rounds are numbered from 1 in this process,
        and so come after them.
    sent : ArrayRecord
        The device half that went out in the round that is under way.
    turns_of_all : int
        Rounds like that one after which each device has had its turn.
    server_half : dict or None
        The server half's entries before that round, if they may be wanted.
    metrics : RoundMetrics
        Those of that round.
    """

    def __init__(
        self,
        half: HalfTrainer,
        devices: Strategy,
        num_rounds: int,
        *,
        evaluate_every: int,
        codec: CutCodec,
        output_codec: CutCodec | None,
        optimizer_state: OptimizerState,
        max_failed_rounds: int,
        settings: Mapping[str, str],
        arrays: ArrayRecord | None,
        configs: SentConfigs | None = None,
    ) -> None:
        self.ledger = Ledger()
        self.progress = Progress(
            num_rounds,
            self.ledger,
            evaluate_every=evaluate_every,
            codec=codec,
            output_codec=output_codec,
        )
        self.failed_rounds = FailedRounds(self.progress, max_failed_rounds)
        self.standstill = Standstill()
        self.device_states = DeviceStates(optimizer_state, _shapes_of(arrays))
        self.history = History()
        self.rounds_done = 0
        self.sent = ArrayRecord()
        self.turns_of_all = 1
        self.server_half: dict[str, Any] | None = None
        self._before_round = self.progress.finished
        self.metrics = RoundMetrics()
        self.settings = dict(settings)
        self._num_rounds = num_rounds
        self._configs = configs or SentConfigs()
        self._half = half
        self._devices = devices

    def begin_round(self, sent: ArrayRecord, *, keeps_half: bool) -> None:
        """Begin a round in which the device half `sent` goes out.

        `keeps_half` says whether the server half may be wanted as it is now.
        """
        self.metrics = RoundMetrics()
        self.sent = sent
        if keeps_half:
            self.server_half = copied(self._half.model.state_dict())
        # last: until then, the server half as it is now is that of the finished round
        self._before_round = self.progress.finished

    def restore_half(self) -> None:
        """Bring the server half back to where it was before the round."""
        if self.server_half is not None:
            self._half.model.load_state_dict(self.server_half)

    def finished_half(self) -> dict[str, Any]:
        """Return the server half's entries after the last finished round."""
        is_under_way = self.progress.finished is self._before_round
        if is_under_way and self.server_half is not None:
            return self.server_half
        return self._half.model.state_dict()

    def end_of_round(
        self, evaluate_fn: EvaluateFn | None, writer: CheckpointWriter
    ) -> EvaluateFn:
        """Return Flower's hook at the end of a round.

        It evaluates, reports, and writes down what has happened.
        """
        report = self.progress.watch(evaluate_fn, lambda: self.metrics.evaluate)

        def end_of_round(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            if server_round == 0 and self.history.lines:
                return None  # a run that goes on evaluated its start long ago
            server_round += self.rounds_done
            self.metrics.central = report(server_round, arrays)
            self.history.add(server_round, self.metrics, self.ledger, self.progress)
            # a run that is started again makes failed rounds once more
            if not self.failed_rounds.in_a_row:
                writer.save(
                    lambda: self.state_dict(server_round, arrays),
                    partial(self._check_own, arrays=arrays),
                )
            self.server_half = None
            if server_round < self._num_rounds:
                self.failed_rounds.check_simulation(server_round)
            return self.metrics.central

        return end_of_round

    def state_dict(self, server_round: int, arrays: ArrayRecord) -> dict[str, Any]:
        """Return the state after a round that ended with the device half `arrays`."""
        return {
            "settings": self.settings,
            "round": server_round,
            "arrays": dict(arrays.to_torch_state_dict()),
            "half": self._half.state_dict(),
            "device_states": self.device_states.state_dict(),
            "devices": devices_state(self._devices),
            "random": random_state(),
            "history": self.history.lines,
            "device_traffic": self.ledger.devices_to_json(),
            "configs": self._configs.state_dict(),
        }

    def check_state(self, state: dict[str, Any], arrays: ArrayRecord) -> None:
        """Refuse a state that no run over the device half `arrays` leaves.

        Raises
        ------
        CheckpointError
            Or another error, where the state has another form.
        """
        check_sizes(state)
        check_rounds(state)
        check_half("device half", state["arrays"], arrays.to_torch_state_dict())
        for name in remembered(self._devices):
            moments = state["devices"][name]
            check_moments(name, moments, arrays.to_torch_state_dict())
        half = state["half"]
        check_half("server half", half["model"], self._half.model.state_dict())
        check_finite_state("server half's optimizer", half["optimizer"])
        now = self._half.state_dict()
        groups = now["optimizer"]["param_groups"]
        check_settings("optimizer", half["optimizer"]["param_groups"], groups)
        check_settings("scheduler", half["scheduler"], now["scheduler"])
        check_finite_state("server half's gradient", half["gradients"])
        check_steps(half["steps"])
        check_updates(half["updates"])

    def _check_own(self, state: dict[str, Any], arrays: ArrayRecord) -> None:
        self.check_state(state, arrays)
        # before training it is what is there, or a module cannot load what it saves
        if state["round"] == 0:
            self._half.model.load_state_dict(state["half"]["model"])

    def load_state_dict(self, state: dict[str, Any]) -> ArrayRecord:
        """Go on from what `state_dict` gave; return the device half.

        Raises
        ------
        Exception
            If it does not fit this run's halves and strategy. The server half is as
            before then.
        """
        before = copied(self._half.state_dict())
        try:
            return self._load(state)
        except Exception:
            self._half.load_state_dict(before)
            raise

    def _load(self, state: dict[str, Any]) -> ArrayRecord:
        self._half.load_state_dict(state["half"])
        self.device_states.load_state_dict(state["device_states"])
        restore_devices(self._devices, state["devices"])
        self.ledger.restore_devices(state["device_traffic"])
        # the history brings back the rounds, without the devices' sums above
        self.history.lines = list(state["history"])
        self.history.restore(self.ledger, self.progress)
        self.rounds_done = int(state["round"])
        # a version before did not write them
        if "configs" in state:
            self._configs.load_state_dict(state["configs"])
        # last, as nothing may draw from the generators after it
        restore_random_state(state["random"])
        return ArrayRecord(state["arrays"])


def _shapes_of(arrays: ArrayRecord | None) -> list[tuple[int, ...]] | None:
    if arrays is None:
        return None
    return [array.shape for array in arrays.values()]
