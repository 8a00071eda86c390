"""A whole ClientApp from a device half, its data and an optimizer."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from flwr.app import ArrayRecord, Context, Message
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod
from flwr.clientapp.typing import Mod
from torch import Tensor, nn

from flwr_splitfc.apps.accuracy import accuracy, accuracy_beside, labels_that_count
from flwr_splitfc.apps.client_turn import ClientTurn
from flwr_splitfc.apps.client_turn_by_messages import ClientTurnByMessages, first_arrays
from flwr_splitfc.apps.factories import MakeModel, check_factories, make_half, tail_of
from flwr_splitfc.apps.local_session import LocalSession
from flwr_splitfc.apps.message_config import MessageConfig
from flwr_splitfc.apps.precision import InPrecision, device_autocast
from flwr_splitfc.apps.proximal import ProximalTerm
from flwr_splitfc.apps.returned import batches_for
from flwr_splitfc.apps.run_defence import defend
from flwr_splitfc.apps.turn_seed import turn_seed
from flwr_splitfc.defence import FeatureDefence, SecretNoise
from flwr_splitfc.defence.asked_defence import check_defence, device_defence
from flwr_splitfc.exchange.device.identity import answer_device_query
from flwr_splitfc.exchange.device.model_codec_mod import model_codec_mod
from flwr_splitfc.exchange.device.optimizer_state import leaves_state
from flwr_splitfc.exchange.device.pipeline import LabelledBatches
from flwr_splitfc.exchange.device.session import Session, own_address
from flwr_splitfc.exchange.device.stream import Stream
from flwr_splitfc.exchange.protocol.device_query import ACTION
from flwr_splitfc.exchange.protocol.frames import server_frame
from flwr_splitfc.exchange.protocol.ticket import Ticket, has_ticket
from flwr_splitfc.model import (
    DecoupledHalf,
    HeadAndTail,
    JoinedModel,
    LossFn,
    OptimizerFn,
    loss_on,
)
from flwr_splitfc.model.joined import check_cuts
from flwr_splitfc.model.part_checks import (
    check_factory,
    check_function,
    check_optimizer,
)
from flwr_splitfc.model.structures import Structure
from flwr_splitfc.run.returned_metrics import metrics_of

LoadData = Callable[[Context], tuple[LabelledBatches, LabelledBatches]]
"""``load_data(context)`` gives batches to train on, and batches to evaluate on."""

MetricsFn = Callable[[Tensor, Tensor], dict[str, float]]
"""``metrics_fn(outputs, labels)`` gives the metrics of a batch."""

_ONE_DEFENCE = (
    "make SplitClientApp without defence=, or leave feature-clip-norm, feature-noise "
    "and nopeek out of the run-config and the node's config"
)


class SplitClientApp(ClientApp):
    """A `ClientApp` that trains and evaluates a device half, with no loop to write.

    A message with a split ticket trains the device half in a session with the server
    half. A message without one, from `FedAvg` or another of Flower's own strategies,
    trains the whole model here, if `server_model` and `loss_fn` are given: the same app
    serves both.

    Parameters
    ----------
    model : callable
        ``model()`` makes the device half; a factory with a parameter to fill gets the
        `Context`.
    load_data : callable
        ``load_data(context)`` gives the batches ``(x, y)`` to train on and those to
        evaluate on; `x` is what the device half takes, a tensor or a tuple, list or
        dict of them. It is called for each message with torch's random generator seeded
        from (run seed, device, round), and each step starts from a seed of its own, so
        loaders that shuffle repeat in a second run; keep what is slow to load in a
        cache of your own.
    optimizer : callable
        ``optimizer(parameters)`` makes the device half's optimizer.
    server_model : callable, optional
        Makes the server half as `model` makes the device half, for training without a
        ticket.
    tail : callable, optional
        Makes the last layers as `model` makes the first: for a strategy without a
        ``loss_fn``, whose server half is the middle. The device's arrays are then a
        `HeadAndTail`'s. Not used where the run-config says ``u-shaped = false``, as in
        `SplitServerApp`.
    auxiliary : callable, optional
        Makes the auxiliary head as `model` makes the device half, such as
        ``partial(AuxiliaryHead, (32, 6, 6), 10)``: for a strategy that is `decoupled`.
        The device half then learns from ``loss_fn(auxiliary(features), labels)``, and
        the device's arrays are a `DecoupledHalf`'s.
    loss_fn : callable, optional
        ``loss_fn(outputs, labels)``, for training with `tail`, with `auxiliary` or
        without a ticket, and for ``eval_loss``.
    defence : FeatureDefence, optional
        Of the features that leave the device, in training and in evaluation. By default
        that of the keys ``feature-clip-norm``, ``feature-noise`` and ``nopeek`` of the
        node's config or, where it has none, of the run-config. Devices refuse turns
        whose keys ask for another one than this. Give it to `SplitServerApp`, too.
    metrics_fn : callable (default: `accuracy`)
        ``metrics_fn(outputs, labels)`` gives the metrics of a batch to evaluate, means
        over its samples. The default is for outputs (B, classes, ...), and leaves out
        the `ignore_index` of `loss_fn`.
    torch_threads : int (default: 1)
        CPU threads for torch in this process. Simulated devices share the machine.
    mods, train_mods : list, optional
        Flower's mods, around training and evaluation, and around training alone. Those
        that want a model in each reply, as for differential privacy, are `train_mods`.
        With Flower's `LocalDpMod`, and an optimizer that has state, the strategy has to
        be one with ``optimizer_state="fresh"``: that state tells what the mod hides.

    Notes
    -----
    The message's config (``train_config`` and ``evaluate_config`` of `Strategy.start`)
    may hold ``steps-per-turn`` (default: one pass over the batches; a longer turn
    starts over), ``learning-rate`` (default: what `optimizer` says), ``torch-threads``
    (default: `torch_threads`), ``device-precision`` ("bfloat16" runs the device's
    layers under ``torch.autocast``; weights, and what goes to the server, stay
    float32), ``proximal-mu``, which `FedProx` sends, and, for training without a
    ticket, ``seed``.

    Examples
    --------
    >>> from functools import partial
    >>> batches = [(torch.zeros(8, 4), torch.zeros(8, dtype=torch.int64))]
    >>> app = SplitClientApp(
    ...     model=partial(nn.Linear, 4, 3),
    ...     load_data=lambda context: (batches, batches),
    ...     optimizer=partial(torch.optim.Adam, lr=1e-3),
    ... )
    """

    def __init__(
        self,
        model: MakeModel,
        load_data: LoadData,
        optimizer: OptimizerFn,
        *,
        server_model: MakeModel | None = None,
        tail: MakeModel | None = None,
        auxiliary: MakeModel | None = None,
        loss_fn: LossFn | None = None,
        defence: FeatureDefence | None = None,
        metrics_fn: MetricsFn = accuracy,
        torch_threads: int = 1,
        mods: Sequence[Mod] = (),
        train_mods: Sequence[Mod] = (),
    ) -> None:
        check_factory("model", model, "model()", "the class of the device half")
        check_optimizer(optimizer)
        check_function("load_data", load_data, "load_data(context)")
        check_factories(server_model=server_model, tail=tail, auxiliary=auxiliary)
        if loss_fn is not None:
            check_function("loss_fn", loss_fn, "loss_fn(outputs, labels)")
        check_function("metrics_fn", metrics_fn, "metrics_fn(outputs, labels)")
        # the first, so that the others see whole models
        super().__init__(mods=[model_codec_mod])
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model
        self.load_data = load_data
        self.optimizer = optimizer
        self.server_model = server_model
        self.tail = tail
        self.auxiliary = auxiliary
        # outputs are there, too
        self.loss_fn = loss_on(self.device, loss_fn)
        self.defence = defence
        self.metrics_fn = metrics_fn
        self.torch_threads = torch_threads
        self._is_private = any(
            isinstance(mod, LocalDpMod) for mod in [*mods, *train_mods]
        )
        super().train(mods=[*mods, *train_mods])(self._train)
        super().evaluate(mods=list(mods))(self._evaluate)
        super().query(ACTION)(answer_device_query)

    def _train(self, message: Message, context: Context) -> Message:
        config = MessageConfig(message)
        model = self._starting_model(message, context)
        model.train()
        batches = batches_for("train", self.load_data(context))
        optimizer = self._optimizer_of(model, config.learning_rate)
        if self._is_private:
            _check_private(message, optimizer)
        proximal = ProximalTerm(model, config.proximal_mu)
        with self._turn(message, context, model, optimizer) as turn:
            drawn = turn.batches(batches, config.steps_per_turn)
            for loss in self._losses(turn, model, drawn, config.device_precision):
                optimizer.zero_grad()
                loss.backward()
                proximal.add_gradient()
                optimizer.step()
            turn.metrics = turn.server.metrics()
        return turn.reply(ArrayRecord(model.state_dict()))

    @torch.no_grad()
    def _evaluate(self, message: Message, context: Context) -> Message:
        config = MessageConfig(message)
        model = self._starting_model(message, context)
        model.eval()
        batches = batches_for("evaluate", self.load_data(context))
        with (
            self._turn(message, context, model) as turn,
            device_autocast(config.device_precision, self.device),
        ):
            for x, y in turn.batches(batches):
                outputs = _outputs(turn, model, x)
                self._add_metrics(turn, outputs, y)
            turn.metrics = turn.server.metrics()
        return turn.reply()

    def _starting_model(self, message: Message, context: Context) -> nn.Module:
        """The model with the message's arrays; torch's generator starts anew."""
        config = MessageConfig(message)
        torch.set_num_threads(config.torch_threads(default=self.torch_threads))
        if has_ticket(message):
            ticket = Ticket.from_message(message)
            model = self._device_model(ticket, context)
            layers = model.device if isinstance(model, DecoupledHalf) else model
            check_cuts(layers, ticket.cut, ticket.output_cut)
        else:
            model = self._joined_model(context)
        model.to(self.device)
        model.load_state_dict(first_arrays(message, context).to_torch_state_dict())
        # not earlier: a new model draws its weights, which the arrays replace
        torch.manual_seed(turn_seed(message, context))
        return model

    def _defended(self, model: nn.Module, context: Context) -> SecretNoise:
        """Defend a device half's features; return the source of their noise."""
        noise = SecretNoise()
        if self.defence is None:
            defence = device_defence(context, noise)
        else:
            check_defence(context, self.defence, _ONE_DEFENCE)
            defence = replace(self.defence, source=noise)
        defend(model, defence)
        return noise

    def _device_model(self, ticket: Ticket, context: Context) -> nn.Module:
        tail = tail_of(self.tail, context)
        if not ticket.output_codec:
            if tail is not None:
                raise ValueError(
                    "SplitClientApp has a tail, so the loss is the device's: "
                    "make the strategy with loss_fn=None"
                )
        elif tail is None or self.loss_fn is None:
            raise ValueError(
                "the strategy has no loss_fn, so the loss is the device's: "
                "give tail and loss_fn"
            )
        if ticket.decoupled:
            return self._decoupled_half(context)
        return self._device_layers(context)

    def _decoupled_half(self, context: Context) -> DecoupledHalf:
        if self.auxiliary is None or self.loss_fn is None:
            raise ValueError(
                "the strategy is decoupled, so the device half learns from a loss of "
                "its own: give SplitClientApp an auxiliary head and a loss_fn"
            )
        device = make_half(self.model, context)
        return DecoupledHalf(device, make_half(self.auxiliary, context))

    def _joined_model(self, context: Context) -> JoinedModel:
        if self.server_model is None or self.loss_fn is None:
            raise ValueError(
                "this message carries no split ticket, so the whole model is to be "
                "trained here: give SplitClientApp a server_model and a loss_fn for "
                "that"
            )
        device = self._device_layers(context)
        return JoinedModel(device, make_half(self.server_model, context))

    def _device_layers(self, context: Context) -> nn.Module:
        head = make_half(self.model, context)
        tail = tail_of(self.tail, context)
        if tail is None:
            return head
        return HeadAndTail(head, make_half(tail, context))

    def _optimizer_of(
        self, model: nn.Module, learning_rate: float | None
    ) -> torch.optim.Optimizer:
        optimizer = self.optimizer(model.parameters())
        if learning_rate is not None:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
        return optimizer

    def _turn(
        self,
        message: Message,
        context: Context,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> ClientTurn:
        seed = turn_seed(message, context)
        if not has_ticket(message):
            return ClientTurn(message, LocalSession(self.loss_fn, seed), model, seed)
        ticket = Ticket.from_message(message)
        noise = self._defended(model, context)
        if ticket.is_for_messages:
            return ClientTurnByMessages(message, context, model, optimizer, seed, noise)
        stream = Stream(ticket, own_address(context), closes_by_reply=True)
        kept = server_frame(message).kept
        session = Session(ticket, stream, optimizer=optimizer, kept=kept)
        return ClientTurn(message, session, model, seed, noise)

    def _losses(
        self,
        turn: ClientTurn,
        model: nn.Module,
        batches: LabelledBatches,
        precision: str,
    ) -> Iterator[Tensor]:
        """Yield the loss of each batch, for its backward pass."""
        server = turn.server
        if isinstance(server, Session) and _is_pipelined(server.ticket):
            yield from server.pipelined(InPrecision(model, precision), batches)
            return
        for x, y in batches:
            with device_autocast(precision, self.device):
                loss = self._loss(turn, model, x, y)
            yield loss

    def _loss(
        self, turn: ClientTurn, model: nn.Module, x: Structure, y: Tensor
    ) -> Tensor:
        if isinstance(model, DecoupledHalf):
            return self._auxiliary_loss(turn, model, x, y)
        if not isinstance(model, HeadAndTail):
            return turn.server.loss(model(x), y)
        assert self.loss_fn is not None  # _device_model has seen to it
        assert isinstance(turn.server, Session)
        # what is no tensor may be of a type of the app's own, and is not counted
        entries = y.numel() if isinstance(y, Tensor) else None
        outputs = model(x, partial(turn.server.forward, label_entries=entries))
        loss = self.loss_fn(outputs, y)
        counted = labels_that_count(self.loss_fn, outputs, y)
        turn.add({"train_loss": loss.item()}, counted)
        return loss

    def _auxiliary_loss(
        self, turn: ClientTurn, model: DecoupledHalf, x: Structure, y: Tensor
    ) -> Tensor:
        """Send a batch's features up, and return the device's own loss of them."""
        assert self.loss_fn is not None  # _decoupled_half has seen to it
        assert isinstance(turn.server, Session)
        features = model(x)
        turn.server.send(features, y)
        outputs = model.auxiliary(features)
        loss = self.loss_fn(outputs, y)
        counted = labels_that_count(self.loss_fn, outputs, y)
        turn.add({"auxiliary_loss": loss.item()}, counted)
        return loss

    def _add_metrics(self, turn: ClientTurn, outputs: Structure, y: Tensor) -> None:
        """Add a batch's loss and metrics, each over the labels that it is a mean of."""
        counted = labels_that_count(self.loss_fn, outputs, y)
        if self.loss_fn is not None:
            loss = self.loss_fn(outputs, y)
            turn.add({"eval_loss": loss.item()}, counted)
        if self.metrics_fn is accuracy:
            turn.add(accuracy_beside(self.loss_fn, outputs, y), counted)
            return
        returned = self.metrics_fn(outputs, y)
        metrics = metrics_of("metrics_fn(outputs, labels)", returned)
        # which labels another function leaves out, nobody knows
        turn.add(metrics, len(y))


def _check_private(message: Message, optimizer: torch.optim.Optimizer) -> None:
    """Refuse to send, beside a noisy device half, what tells its gradient exactly."""
    if not has_ticket(message):
        return
    if Ticket.from_message(message).keeps_optimizer and leaves_state(optimizer):
        raise ValueError(
            "the app has a LocalDpMod, which makes the device half noisy, and the "
            "strategy wants the optimizer's state, too, which tells the gradient "
            'without noise: set optimizer-state = "fresh", in code '
            'optimizer_state="fresh" of the strategy'
        )


def _outputs(turn: ClientTurn, model: nn.Module, x: Structure) -> Structure:
    """The whole model's outputs, the middle of which is the server's."""
    predict = turn.server.predict
    if isinstance(model, HeadAndTail):
        return model(x, predict)
    return predict(model(x))


def _is_pipelined(ticket: Ticket) -> bool:
    # decoupled turns wait for no answer as they are
    return ticket.pipeline_depth > 1 and not ticket.decoupled
