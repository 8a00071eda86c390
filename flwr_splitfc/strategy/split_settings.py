"""What `SplitLearning` is given: defaults, and what cannot work together."""

from collections.abc import Iterable, Sequence
from logging import getLogger
from operator import index
from typing import Any, SupportsIndex, TypeAlias

import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedXgbBagging,
    FedXgbCyclic,
    Strategy,
)
from torch import Tensor, nn

from flwr_splitfc.codec import CutCodec, ModelCodec, cut_codec
from flwr_splitfc.codec.model_arrays import EXACT_BITS
from flwr_splitfc.exchange import EndpointConfig
from flwr_splitfc.exchange.protocol.ticket import MOST_UNDER_WAY
from flwr_splitfc.exchange.server.accounts.budget_rules import BudgetRule
from flwr_splitfc.exchange.server.turn.device_states import OptimizerState
from flwr_splitfc.model import LossFn, OptimizerFn, SchedulerFn
from flwr_splitfc.model.cutting import beginning_of
from flwr_splitfc.model.part_checks import (
    check_factory,
    check_function,
    check_optimizer,
    check_server_model,
)
from flwr_splitfc.settings import check_int64, under_key
from flwr_splitfc.strategy.budgets import NodeConfigBudgets, ThroughputBudgets
from flwr_splitfc.strategy.innermost import innermost, layers
from flwr_splitfc.strategy.round_robin import RoundRobin

_ONE_WAY_DEPTH = 16
"""Mini-batches under way whose answers nobody waits for: a second at 60 ms each."""

_COARSE_MODELS = ModelCodec(weights=4, changes=3, state=3)
"""Beside a budget at the cut: next to what that loses, these bits lose nothing."""

_PRECISE_MODELS = ModelCodec(weights=6, changes=5, state=4)
"""Beside a cut that no budget binds: what it saves must not be lost here."""

_PRIVATE = (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
)

TorchDevices: TypeAlias = torch.device | str | Sequence[torch.device | str] | None

logger = getLogger("flwr")


def check_parts(
    server_model: nn.Module,
    loss_fn: LossFn | None,
    optimizer: OptimizerFn,
    scheduler: SchedulerFn | None,
) -> None:
    """Refuse what is no model, loss, or maker of an optimizer or a scheduler."""
    check_server_model(server_model)
    check_optimizer(optimizer)
    if loss_fn is not None:
        check_function("loss_fn", loss_fn, "loss_fn(outputs, labels)")
    if scheduler is not None:
        example = "functools.partial(StepLR, step_size=100)"
        check_factory("scheduler", scheduler, "scheduler(optimizer)", example)


def check_devices(devices: Strategy) -> None:
    """Refuse what combines no device halves; warn of a `start` of its own."""
    if not isinstance(devices, Strategy):
        raise ValueError(
            f"devices is {devices!r:.100}, wanted a strategy of "
            "flwr.serverapp.strategy, such as FedAvg(fraction_train=0.1)"
        )
    for layer in layers(devices):
        _check_layer(layer)


def _check_layer(layer: Strategy) -> None:
    name = type(layer).__name__
    if isinstance(layer, FedXgbBagging | FedXgbCyclic):
        raise ValueError(
            f"devices is a {name}, which combines trees, and device halves are arrays: "
            "wanted a strategy such as FedAvg()"
        )
    if type(layer).start is not Strategy.start:
        logger.warning(
            "%s has a start() of its own, which is not called: what it does belongs in "
            "evaluate_fn, callbacks= or save_to=",
            name,
        )


def check_integers(**numbers: object) -> None:
    """Refuse what is no whole number, by its name."""
    for name, number in numbers.items():
        if not isinstance(number, SupportsIndex):
            raise ValueError(f"{name} is {number!r:.100}, wanted an integer")


def as_output_codec(
    output_codec: CutCodec | str | None, loss_fn: LossFn | None
) -> CutCodec | None:
    """Return the codec of the output; None where that does not travel."""
    if loss_fn is None:
        return as_codec(output_codec or "float32")
    if output_codec is not None:
        raise ValueError(
            "output_codec is for loss_fn=None: "
            "with a loss_fn the output stays on the server"
        )
    return None


def check_copies(merge_steps: int, replay_steps: int) -> None:
    """Refuse what needs one server half for all, where each device has a copy."""
    if merge_steps > 1:
        raise ValueError(
            f"merge_steps is {merge_steps}, and each device has a copy of the "
            "server half: no two batches wait for the same one"
        )
    if replay_steps:
        raise ValueError(
            f"replay_steps is {replay_steps}, and each device has a copy of the "
            "server half, which has seen no mini-batch of before"
        )


def as_torch_devices(
    device: TorchDevices, shared_server_half: bool
) -> list[torch.device]:
    """Return where the server half and its copies train; none for the default."""
    if device is None:
        return []
    names = [device] if isinstance(device, str | torch.device) else device
    try:
        devices = [torch.device(one) for one in names]
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"device is {device!r:.100}, wanted torch devices, such as "
            f'"cuda:0" or ["cuda:0", "cuda:1"]: {error}'
        ) from error
    if len(devices) > 1 and shared_server_half:
        raise ValueError(
            f"device is {list(map(str, devices))}, and the server half is one for all: "
            "wanted one device, or shared_server_half=False"
        )
    return devices


def as_codec(codec: CutCodec | str) -> CutCodec:
    """Return a codec by its name, or itself."""
    return cut_codec(codec) if isinstance(codec, str) else codec


def as_model_codec(bits: int | ModelCodec | None, codec: CutCodec) -> ModelCodec:
    """Return how models travel beside a codec at the cut, by default as it does."""
    if bits is not None:
        return ModelCodec.of(bits)
    if codec.name == "float32":
        return ModelCodec.of(EXACT_BITS)
    return _COARSE_MODELS if _spends_budgets(codec) else _PRECISE_MODELS


def _spends_budgets(codec: CutCodec) -> bool:
    """Whether payloads are as precise as budgets allow, and not as a quality wants."""
    parts = (codec.selector, codec.quantiser, codec.quantiser.for_gradient())
    return codec.quality is None and any(part.budgeted for part in parts)


def as_rules(
    budgets: BudgetRule | Sequence[BudgetRule] | None,
) -> tuple[BudgetRule, ...]:
    """Return rules of budgets as a tuple."""
    if budgets is None:
        return (NodeConfigBudgets(),)
    given: Any = budgets
    if callable(given) or not isinstance(given, Iterable):
        given = [given]
    rules: tuple[BudgetRule, ...] = tuple(given)
    for rule in rules:
        # a class makes a rule, and is none
        if not callable(rule) or isinstance(rule, type):
            raise ValueError(
                f"budgets is {budgets!r:.100}, wanted a rule or a sequence of rules, "
                "such as NodeConfigBudgets(); bits for all are the codec's uplink_bits "
                "and downlink_bits"
            )
    return rules


def as_seed(seed: SupportsIndex) -> int:
    """Return a seed as an int, which numpy's are not."""
    try:
        number = index(seed)
    except TypeError:
        raise ValueError(f"seed is {seed!r:.100}, wanted an integer") from None
    with under_key("seed"):
        check_int64(number)
    return number


def check_endpoint(endpoint: EndpointConfig | None) -> None:
    """Refuse what holds no settings of an endpoint."""
    if endpoint is not None and not isinstance(endpoint, EndpointConfig):
        raise ValueError(
            f"endpoint is {endpoint!r:.100}, wanted an EndpointConfig; "
            "EndpointConfig.from_run_config makes one of keys such as split-port"
        )


def check_initial_arrays(arrays: ArrayRecord, server_model: nn.Module) -> None:
    """Refuse the arrays of the whole model, which devices could not load.

    Halves written by hand may have the same names: then nothing is known.
    """
    sent = {name: tuple(array.shape) for name, array in arrays.items()}
    # a JoinedModel's, and those of a model that was cut
    prefixes = ["server.", ""] if beginning_of(server_model) else ["server."]
    for prefix in prefixes:
        of_server = {
            prefix + name: tuple(entry.shape)
            for name, entry in server_model.state_dict().items()
            if isinstance(entry, Tensor)
        }
        if of_server and of_server.items() <= sent.items():
            raise ValueError(
                "initial_arrays has the server half's entries, too, such as "
                f"{next(iter(of_server))!r}, wanted those of the device half alone: "
                "ArrayRecord(device_half.state_dict())"
            )


def check_decoupled(loss_fn: LossFn | None, budgets: Sequence[BudgetRule]) -> None:
    """Refuse what device halves with a loss of their own cannot be beside."""
    if loss_fn is None:
        raise ValueError(
            "decoupled is for a loss of the server's: where the last layers are on "
            "devices, the server half cannot train without a gradient of theirs"
        )
    if any(isinstance(rule, ThroughputBudgets) for rule in budgets):
        raise ValueError(
            "ThroughputBudgets go by how long devices wait for answers, "
            "and decoupled ones wait for none: give other budgets"
        )


def check_send_every(send_every: int, decoupled: bool) -> None:
    """Refuse to leave mini-batches out where a device half needs their gradient."""
    if send_every < 1:
        raise ValueError(f"send_every is {send_every}, wanted 1 or more")
    if send_every > 1 and not decoupled:
        raise ValueError(
            f"send_every is {send_every}, and a coupled device half learns nothing "
            "from a mini-batch that does not go up: it needs decoupled=True"
        )


def as_depth(
    depth: int | None,
    loss_fn: LossFn | None,
    endpoint: EndpointConfig | None,
    decoupled: bool,
) -> int:
    """Return how many mini-batches are under way, where steps need not wait."""
    by_messages = endpoint is not None and endpoint.transport == "messages"
    if depth is None:
        depth = _ONE_WAY_DEPTH if decoupled and not by_messages else 1
    _check_depth(depth, loss_fn, by_messages)
    return depth


def _check_depth(depth: int, loss_fn: LossFn | None, by_messages: bool) -> None:
    """Refuse several mini-batches under way where each step waits for the last."""
    check_integers(pipeline_depth=depth)
    if not 1 <= depth <= MOST_UNDER_WAY:
        raise ValueError(f"pipeline_depth is {depth}, wanted 1 to {MOST_UNDER_WAY}")
    if depth == 1:
        return
    if loss_fn is None:
        raise ValueError(
            f"pipeline_depth is {depth}, and the loss is the devices': "
            "each of their steps needs the server half's output first"
        )
    if by_messages:
        raise ValueError(
            f"pipeline_depth is {depth}, and frames travel in Flower's messages, "
            'one at a time: it needs the transport "stream"'
        )


def default_optimizer_state(devices: Strategy) -> OptimizerState:
    """Return where the optimizer state of a device half goes between turns."""
    # clipping and noise are of the half alone: its optimizer's state tells the next
    # device what they hide
    if any(isinstance(layer, _PRIVATE) for layer in layers(devices)):
        return "per-device"
    # in turn the device half is handed on, and its optimizer's state with it;
    # in parallel no device comes before another
    return "relay" if isinstance(innermost(devices), RoundRobin) else "per-device"
