"""The server half in training: one step is applied as a whole, or not at all.

A step has two parts. The gradient by the features is what a device waits for; applying
the step (the optimizer, and what makes it possible to go back) can follow when the
device has its answer. It is applied before anything else is done with the half.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from copy import deepcopy
from functools import partial
from itertools import chain
from logging import getLogger
from threading import Lock
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim.lr_scheduler import LRScheduler

from flwr_splitfc.exchange.protocol.optimizer_inputs import (
    check_state,
    in_layout_of,
    lay_out_state,
    step_without_gradient,
    stepped_copy,
    with_own_memory,
)
from flwr_splitfc.exchange.protocol.seeds import SeedPart, seeded_generator
from flwr_splitfc.exchange.protocol.split_errors import (
    FeaturesRefused,
    LabelsRefused,
    SplitError,
    StepRefused,
)
from flwr_splitfc.exchange.server.feature_shapes import FeatureShape, as_feature_shape
from flwr_splitfc.exchange.server.half_guard import HalfGuard, WeightsRefused
from flwr_splitfc.exchange.server.half_randomness import HalfRandomness
from flwr_splitfc.exchange.server.half_steps import (
    BegunStep,
    ForwardPass,
    PendingUpdate,
    Update,
)
from flwr_splitfc.exchange.server.replay_memory import KeptBatch, ReplayMemory
from flwr_splitfc.exchange.server.step_checks import (
    check_finite,
    check_labels,
    check_loss,
    check_output,
    check_prediction,
)
from flwr_splitfc.exchange.server.step_merger import StepMerger, WaitingBatch
from flwr_splitfc.exchange.server.step_undo import StepUndo
from flwr_splitfc.exchange.server.trainer_settings import (
    check_loss_fn,
    check_merging,
    check_replay,
    check_scheduler,
    check_shapes,
    check_steps,
    check_trained,
)
from flwr_splitfc.model import LossFn, OptimizerFn, SchedulerFn
from flwr_splitfc.model.structures import (
    Structure,
    float_tensors,
    leaves_of,
    mapped,
    on_device,
    rows_of,
    shapes_of,
)

logger = getLogger("flwr")

_Made = TypeVar("_Made")


class HalfTrainer:
    """Trains a server half on the features that devices send.

    Many sessions may call it at once: a lock lets one step in at a time. A step is one
    call of `step`, or of `forward` and `backward` where the loss is the device's.
    `begin_step` and `begin_backward` return before the step is applied.

    Parameters
    ----------
    model : nn.Module
        The layers after the cut; moved to `device`, and into training mode.
    loss_fn : callable or None
        ``loss_fn(model(features), labels)`` gives a scalar; labels may be any tensor
        with one row a sample. A module with tensors is copied to `device`. None where
        the loss is the device's: then there is no `step`.
    optimizer : callable
        ``optimizer(model.parameters())`` makes the optimizer, for example
        ``partial(torch.optim.Adam, lr=1e-3)``.
    scheduler : callable, optional
        ``scheduler(optimizer)`` makes a learning-rate scheduler, stepped after each
        optimizer step.
    accumulate_steps : int (default: 1)
        Mini-batches whose gradients are averaged into one optimizer step. If those of
        earlier ones would make it leave weights that cannot be trained any more, they
        count as zero.
    max_grad_norm : float, optional
        Clips the total norm of each optimizer step's gradient.
    device : torch.device or str, optional
        CUDA where present, otherwise the CPU.
    seed : int (default: 0)
        Step n draws its randomness (dropout layers) from (seed, n) and leaves torch's
        own generators alone.
    feature_shape : sequence of int, optional
        The shape of a sample's features, with None for a size that varies; a tuple,
        list or dict of shapes where the features are such tensors. Others are refused.
        Default: what the model takes.
    merge_steps : int (default: 1)
        How many mini-batches that wait at the same time make one step, of the mean of
        their gradients: all rows go through the half together, and each batch has its
        own loss and the gradient of it. It is applied before it is answered.
    replay_steps : int (default: 0)
        Further optimizer steps after each mini-batch, on mini-batches of before: their
        features as they were decoded then, drawn at random. They follow the answer, and
        count in nothing.

    Attributes
    ----------
    model : nn.Module
    optimizer : torch.optim.Optimizer
    scheduler : LRScheduler or None
    steps : int
        Mini-batches so far.
    record_updates : bool
        Whether to write down in `updates` which batches came, in the order in which
        they were applied.
    updates : list of Update
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFn | None,
        optimizer: OptimizerFn,
        *,
        scheduler: SchedulerFn | None = None,
        accumulate_steps: int = 1,
        max_grad_norm: float | None = None,
        device: torch.device | str | None = None,
        seed: int = 0,
        feature_shape: FeatureShape = None,
        merge_steps: int = 1,
        replay_steps: int = 0,
    ) -> None:
        check_steps(accumulate_steps, max_grad_norm)
        check_replay(replay_steps, loss_fn, accumulate_steps, merge_steps)
        check_merging(merge_steps, model, loss_fn, accumulate_steps)
        check_shapes(model)
        check_loss_fn(loss_fn)
        default_device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device or default_device)
        self._model = model.to(self.device).train()
        self.loss_fn = _loss_on(self.device, loss_fn)
        self._make_optimizer = optimizer
        self._make_scheduler = scheduler
        self._optimizer = optimizer(self._model.parameters())
        check_trained(self._optimizer, self._model)
        self._scheduler = scheduler(self._optimizer) if scheduler else None
        check_scheduler(self._scheduler)
        self.accumulate_steps = accumulate_steps
        self.max_grad_norm = max_grad_norm
        self.seed = seed
        self._randomness = HalfRandomness(seed, self.device)
        self.record_updates = False
        self.feature_shape = as_feature_shape(feature_shape)
        self._steps = 0
        self._updates: list[Update] = []
        self._parameters = [p for p in self._model.parameters() if p.requires_grad]
        self._undo = StepUndo(self._model, self._optimizer, self._scheduler)
        self._changes = 0
        self._guard = HalfGuard(self._model, self._try_run)
        self._pending: PendingUpdate | None = None
        # of the model into its features; not known before the first pass
        self._writes: bool | None = None
        self._lock = Lock()
        self.merge_steps = merge_steps
        self._merger = StepMerger(merge_steps, self._begin_alone, self._step_together)
        self.replay_steps = replay_steps
        self._memory = ReplayMemory()

    @property
    def model(self) -> nn.Module:
        self.apply_begun()
        return self._model

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        self.apply_begun()
        return self._optimizer

    @property
    def scheduler(self) -> LRScheduler | None:
        self.apply_begun()
        return self._scheduler

    @property
    def steps(self) -> int:
        self.apply_begun()
        return self._steps

    @property
    def updates(self) -> list[Update]:
        self.apply_begun()
        return self._updates

    def apply_begun(self) -> None:
        """Apply the step that was begun and not yet finished, if there is one."""
        with self._exclusively():
            pass

    def copy(
        self,
        seed: int,
        *,
        torch_device: torch.device | None = None,
        beside_others: bool = False,
    ) -> "HalfTrainer":
        """Copy the model as it is now, with an optimizer and a scheduler of its own.

        Both are fresh.

        Parameters
        ----------
        seed : int
        torch_device : torch.device, optional
            Where the copy trains; default where this one does.
        beside_others : bool (default: False)
            Whether others train on other GPUs at the same time. The copy then draws its
            randomness from its GPU's generator alone: the CPU's is one for all.

        Raises
        ------
        ValueError
            If the model cannot be copied.
        """
        with self._exclusively():
            model = _copy_of(self._model)
        # gradients that the original has accumulated are its own
        model.zero_grad()
        copy = HalfTrainer(
            model,
            self.loss_fn,
            self._make_optimizer,
            scheduler=self._make_scheduler,
            accumulate_steps=self.accumulate_steps,
            max_grad_norm=self.max_grad_norm,
            device=torch_device or self.device,
            seed=seed,
            feature_shape=self.feature_shape,
        )
        copy._randomness = HalfRandomness(
            seed, copy.device, draws_on_cpu=not beside_others
        )
        return copy

    def end_training(self) -> None:
        """Drop what only further steps need; weights, buffers and counts stay."""
        with self._exclusively():
            self._model.zero_grad()
            self._optimizer.state.clear()
            self._undo.forget()

    def state_dict(self) -> dict[str, Any]:
        """Return all that training goes on from.

        That is weights, buffers, optimizer, scheduler, gradients that are not applied
        yet, and counts.
        """
        with self._exclusively():
            schedule = self._scheduler.state_dict() if self._scheduler else None
            return {
                "model": self._model.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "scheduler": schedule,
                "gradients": [_stored(p.grad) for p in self._parameters],
                "steps": self._steps,
                "updates": [tuple(update) for update in self._updates],
            }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave, for the same model and optimizer.

        Raises
        ------
        Exception
            If it is of others, or the optimizer cannot make a step with its state. Load
            another state then.
        """
        with self._exclusively():
            self._model.load_state_dict(state["model"])
            self._optimizer.load_state_dict(state["optimizer"])
            if self._scheduler is not None:
                self._scheduler.load_state_dict(state["scheduler"])
            gradients = state["gradients"]
            for parameter, gradient in zip(self._parameters, gradients, strict=True):
                if gradient is not None:
                    gradient = in_layout_of(parameter, gradient.to(self.device))
                parameter.grad = gradient
            self._steps = state["steps"]
            self._updates = [Update(*update) for update in state["updates"]]
            self._try_optimizer()
            self._guard.take_as_good()

    def _try_optimizer(self) -> None:
        """Make a step of the optimizer and take it back."""
        fresh = self._make_optimizer(self._model.parameters())
        with self._update_rng():
            stepped = stepped_copy(fresh)
        if stepped is not None:
            check_state(self._optimizer, stepped)
        lay_out_state(self._optimizer)
        self._undo.save_buffers()
        self._undo.save_weights()
        try:
            with self._update_rng():
                step_without_gradient(self._optimizer, _sparse_weights(self._model))
        finally:
            self._undo.restore()

    def step(self, features: Structure, labels: Tensor) -> tuple[float, Tensor]:
        """Train on one mini-batch.

        Parameters
        ----------
        features : structure of Tensor of shape (B, ...)
        labels : Tensor of shape (B, ...)

        Returns
        -------
        tuple of float and Tensor
            The loss, and its gradient by the first floating point tensor of `features`,
            in its shape, on the CPU.

        Raises
        ------
        FeaturesRefused, LabelsRefused, StepRefused
            Nothing has changed then: neither weights nor buffers nor optimizer.
        """
        begun = self.begin_step(features, labels)
        begun.finish()
        return begun.loss, begun.gradients[0]

    def begin_step(
        self,
        features: Structure,
        labels: Tensor,
        origin: Update | None = None,
        *,
        wanted: Sequence[bool] | None = None,
    ) -> BegunStep:
        """Make the gradients of a `step`, which is applied later.

        Parameters and errors are those of `step`, but for what only applying it shows.
        `origin` says where the batch comes from, for `updates`, and `wanted` of each
        floating point tensor of the features whether its gradient is; by default all
        are.
        """
        batch = WaitingBatch(features, labels, origin, wanted)
        if self.merge_steps > 1:
            return self._merger.begin(batch)
        return self._begin_alone(batch)

    def _begin_alone(self, batch: WaitingBatch) -> BegunStep:
        with self._exclusively():
            return self._again_if_it_writes(partial(self._begun, batch))

    def _begun(self, batch: WaitingBatch) -> BegunStep:
        with self._step_rng(), self._as_a_whole():
            x = self._leaves(batch.features, batch.wanted)
            labels = batch.labels.to(self.device)
            kept = KeptBatch.of(x, labels) if self.replay_steps else None
            output = self._run(self._model, x)
            loss = self._loss(output, labels)
            return self._gradient(loss, None, x, batch.origin, kept)

    def _step_together(self, batches: Sequence[WaitingBatch]) -> list[BegunStep]:
        """Make one step of several batches, whole or not at all."""
        with self._exclusively():
            with self._step_rng(), self._as_a_whole():
                leaves = [self._leaves(each.features, each.wanted) for each in batches]
                x = torch.cat(leaves)
                losses = self._losses(x, [each.labels for each in batches])
                begun, grads = self._gradients_together(losses, leaves)
            self._apply_update(grads, x.detach(), [each.origin for each in batches])
        return begun

    def forward(
        self, features: Structure, *, wanted: Sequence[bool] | None = None
    ) -> ForwardPass:
        """Make the first half of a step, the forward pass in training mode.

        Nothing changes, and a pass that is dropped leaves no trace.

        Parameters
        ----------
        features : structure of Tensor of shape (B, ...)
        wanted
            As in `begin_step`.

        Raises
        ------
        FeaturesRefused, StepRefused
            The half does not take the features, or its output cannot go to a device.
        """
        with self._exclusively():
            x = self._leaves(features, wanted)
            passed = self._again_if_it_writes(partial(self._passed, x))
            check_output(passed.output, rows_of(features))
        return passed

    def _passed(self, x: Structure) -> ForwardPass:
        with self._step_rng():
            return self._pass(x, self._steps)

    def backward(self, passed: ForwardPass, gradient: Tensor) -> Tensor:
        """Make the second half of a step: train on the mini-batch of a `forward`.

        Where another step came between, the forward pass is made again on the weights
        as they are now, with the same randomness; the gradient is then of an output
        that is a few steps old.

        Parameters
        ----------
        passed : ForwardPass
        gradient : Tensor of shape (B, ...)
            Of the device's loss by the output.

        Returns
        -------
        Tensor of shape (B, ...)
            The gradient by the first floating point tensor of the features, on the CPU.

        Raises
        ------
        StepRefused
            Nothing has changed then.
        """
        begun = self.begin_backward(passed, gradient)
        begun.finish()
        return begun.gradients[0]

    def begin_backward(
        self, passed: ForwardPass, gradient: Tensor, origin: Update | None = None
    ) -> BegunStep:
        """Make the gradient of a `backward`, which is applied later.

        Parameters and errors are those of `backward`, but for what only applying it
        shows; `origin` is as in `begin_step`.
        """
        with self._exclusively(), self._step_rng(passed.step), self._as_a_whole():
            # torch refuses a graph whose tensors were written since
            if passed.changes != self._changes:
                features = mapped(passed.features, _leaf_again)
                passed = self._pass(features, passed.step)
            self._take_buffers(passed.buffers)
            return self._gradient(
                passed.output, gradient.to(passed.output), passed.features, origin
            )

    @torch.no_grad()
    def predict(self, features: Structure) -> Structure:
        """Return the output for features of shape (B, ...), in evaluation mode.

        Its tensors are on the CPU.

        Raises
        ------
        FeaturesRefused
            The half does not take the features.
        """
        with self._exclusively(), self._step_rng():
            self._model.eval()
            try:
                output = self._model(on_device(features, self.device))
            except Exception as error:
                raise FeaturesRefused(
                    f"the server half does not take {shapes_of(features)}: {error}"
                    + _advice_on_type(self._model)
                ) from error
            finally:
                self._model.train()
        check_prediction(output)
        return on_device(output, torch.device("cpu"))

    def _leaves(self, features: Structure, wanted: Sequence[bool] | None) -> Structure:
        """Return the features on the half's device, as the leaves of a graph."""
        x = on_device(features, self.device)
        tensors = float_tensors(x)
        if wanted is None:
            wanted = [True] * len(tensors)
        for tensor, is_wanted in zip(tensors, wanted, strict=True):
            tensor.requires_grad_(is_wanted)
        return x

    def _again_if_it_writes(self, make: Callable[[], _Made]) -> _Made:
        """Return what `make` does, made again if the half first writes into features.

        It may do so in few batches, as where it fills a padding. torch refuses to write
        into leaves, so from then on the half gets copies.
        """
        try:
            return make()
        except FeaturesRefused as refusal:
            if self._writes is not False or "in-place" not in str(refusal):
                raise
        self._writes = True
        return make()

    def _run(self, model: Callable[[Structure], Any], x: Structure) -> Any:
        # it visits each module, which takes as long as a small layer
        if not self._model.training:
            self._model.train()
        # always lists and dicts of its own: a model may put others in, or take some out
        given = mapped(x, _itself if self._writes is False else _copied)
        written = leaves_of(given) if self._writes is None else []
        try:
            output = model(given)
        except Exception as error:
            raise FeaturesRefused(
                f"the server half does not take features {shapes_of(x)}: {error}"
                + _advice_on_type(self._model)
            ) from error
        if self._writes is None:
            self._writes = any(_was_written(leaf) for leaf in written)
        return output

    def _try_run(self, model: Callable[[Structure], Any], x: Structure) -> Any:
        with self._step_rng():
            return self._run(model, x)

    def _pass(self, x: Structure, step: int) -> ForwardPass:
        # Not the model's own buffers: to put them back would invalidate the graph of
        # another session's pass.
        buffers = {name: buffer.clone() for name, buffer in self._model.named_buffers()}

        def model(features: Structure) -> Any:
            # a tuple is one argument, too
            return functional_call(self._model, buffers, (features,))

        output = self._run(model, x)
        return ForwardPass(x, output, buffers, step, self._changes)

    @torch.no_grad()
    def _take_buffers(self, buffers: Mapping[str, Tensor]) -> None:
        for name, buffer in self._model.named_buffers():
            buffer.copy_(buffers[name])

    def _losses(self, x: Tensor, labels: Sequence[Tensor]) -> list[Tensor]:
        """Return the loss of each batch, whose rows follow one another in `x`."""
        outputs = self._run(self._model, x)
        check_output(outputs, len(x))
        parts = outputs.split([len(of_batch) for of_batch in labels])
        return [
            self._loss(part, of_batch.to(self.device))
            for part, of_batch in zip(parts, labels, strict=True)
        ]

    def _loss(self, outputs: Any, labels: Tensor) -> Tensor:
        assert self.loss_fn is not None  # the session has seen to it
        check_labels(self.loss_fn, outputs, labels)
        try:
            loss = self.loss_fn(outputs, labels)
        except Exception as error:
            raise LabelsRefused(
                f"the loss does not take labels {tuple(labels.shape)} of {labels.dtype}"
                f" with outputs {shapes_of(outputs)}: {error}"
            ) from error
        check_loss(loss)
        return loss

    def _gradient(
        self,
        out: Tensor,
        out_grad: Tensor | None,
        x: Structure,
        origin: Update | None,
        kept: KeptBatch | None = None,
    ) -> BegunStep:
        """Go back from `out` to `x`, and leave the step to be applied."""
        leaves = [tensor for tensor in float_tensors(x) if tensor.requires_grad]
        x_grads, grads = self._gradients_by(out, leaves, out_grad)
        loss = 0.0 if out.ndim else out.item()
        # alone: nobody waits for the check of the others
        check_finite("the gradient by the features", x_grads)
        self._guard.check_buffers()
        gradients = [_to_send(*pair) for pair in zip(leaves, x_grads, strict=True)]
        begun = BegunStep(self.apply_begun, loss, gradients)
        detached = mapped(x, lambda tensor: tensor.detach())
        self._pending = PendingUpdate(begun, grads, detached, origin, kept)
        return begun

    def _gradients_together(
        self, losses: Sequence[Tensor], leaves: Sequence[Tensor]
    ) -> tuple[list[BegunStep], list[Tensor | None]]:
        """Return each batch's part of a step, and the mean gradient by the weights."""
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        # of the sum: a batch's features are in no other batch's loss
        total = torch.stack(list(losses)).sum()
        x_grads, grads = self._gradients_by(total, wanted)
        self._guard.check_buffers()
        begun = []
        for loss, leaf in zip(losses, leaves, strict=True):
            gradients = []
            if leaf.requires_grad:
                x_grad = x_grads.pop(0)
                check_finite("the gradient by the features", [x_grad])
                gradients.append(_to_send(leaf, x_grad))
            begun.append(BegunStep(self.apply_begun, loss.item(), gradients))
        means: list[Tensor | None] = [
            None if grad is None else grad / len(losses) for grad in grads
        ]
        return begun, means

    def _gradients_by(
        self, out: Tensor, leaves: Sequence[Tensor], out_grad: Tensor | None = None
    ) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """Return gradients by leaves and by weights, each with memory of its own."""
        found = torch.autograd.grad(
            out, [*leaves, *self._parameters], out_grad, allow_unused=True
        )
        gradients = with_own_memory(found)
        return gradients[: len(leaves)], gradients[len(leaves) :]

    def _apply_pending(self) -> None:
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            self._apply_update(pending.grads, pending.features, [pending.origin])
        except StepRefused as refusal:
            # its own session is told, whoever asked for it to be applied
            pending.begun.refusal = refusal
            return
        if pending.kept is not None:
            self._replay()
            # last: a second step on the batch that was just taken teaches the least
            self._memory.keep(pending.kept)

    def _replay(self) -> None:
        """Take further steps on mini-batches of before."""
        for number in range(self.replay_steps):
            name = ("replay", self._steps, number)
            batch = self._memory.draw(seeded_generator(self.seed, *name))
            if batch is None:
                return
            # its device was answered long ago, and nobody is to be refused
            with suppress(SplitError):
                grads = self._replayed_gradient(batch, name)
                self._apply_update(grads, batch.features, [])

    def _replayed_gradient(
        self, batch: KeptBatch, name: tuple[SeedPart, ...]
    ) -> Sequence[Tensor | None]:
        with self._randomness.of(*name), self._as_a_whole():
            output = self._run(self._model, batch.features)
            loss = self._loss(output, batch.labels)
            _, grads = self._gradients_by(loss, [])
            self._guard.check_buffers()
        return grads

    def _apply_update(
        self,
        grads: Sequence[Tensor | None],
        features: Structure,
        origins: Sequence[Update | None],
    ) -> None:
        """Apply the gradient of a batch, or of several, whole or not at all.

        Without an origin it is of a batch of before, and neither counts nor moves the
        scheduler.
        """
        with self._as_a_whole(updates=True):
            check_finite("the gradient by the weights", grads)
            counts = bool(origins)
            accumulated = self._has_accumulated
            try:
                self._apply(grads, features, counts=counts)
            except WeightsRefused:
                if not accumulated:
                    raise
                self._drop_accumulated()
                self._apply(grads, features, counts=counts)
                logger.warning(
                    "The gradients that were accumulated before a step would leave "
                    "the server half with weights that cannot be trained any more. "
                    "They are left out of its optimizer step"
                )
        self._steps += len(origins)
        if self.record_updates:
            self._updates += [
                origin._replace(merged=len(origins))
                for origin in origins
                if origin is not None
            ]

    @property
    def _has_accumulated(self) -> bool:
        return any(parameter.grad is not None for parameter in self._parameters)

    def _drop_accumulated(self) -> None:
        """Go back to before the step, and forget the gradients of those before it."""
        self._undo.restore_weights()
        # again, with these gradients: what is saved can be restored once
        self._undo.save_weights()
        for parameter in self._parameters:
            parameter.grad = None

    def _apply(
        self, grads: Sequence[Tensor | None], features: Structure, *, counts: bool
    ) -> None:
        """Accumulate a gradient, and take the optimizer's step if it is due.

        Raises
        ------
        WeightsRefused
        """
        with self._update_rng():
            self._accumulate(grads)
            if self._optimizer_is_due:
                self._step_optimizer()
                if counts:
                    self._step_scheduler()
        self._guard.check_weights(features, self._undo.saved_weights)

    def _accumulate(self, grads: Sequence[Tensor | None]) -> None:
        for parameter, found in zip(self._parameters, grads, strict=True):
            grad = None if found is None else in_layout_of(parameter, found)
            # never in place: `StepUndo` holds the gradients of before
            if grad is None:
                parameter.grad = _cloned(parameter.grad)
            elif parameter.grad is not None:
                parameter.grad = parameter.grad + grad
            else:
                # nor that of the step, which may be applied once more
                parameter.grad = _cloned(grad) if self.accumulate_steps > 1 else grad

    @property
    def _optimizer_is_due(self) -> bool:
        return (self._steps + 1) % self.accumulate_steps == 0

    def _step_optimizer(self) -> None:
        if self.accumulate_steps > 1:
            for parameter in self._parameters:
                if parameter.grad is not None:
                    parameter.grad /= self.accumulate_steps
        if self.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self._parameters, self.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def _step_scheduler(self) -> None:
        if self._scheduler is not None:
            self._scheduler.step()

    @contextmanager
    def _exclusively(self) -> Iterator[None]:
        """Keep other sessions out; all steps that were begun are applied."""
        with self._lock:
            self._apply_pending()
            yield

    def _step_rng(self, step: int | None = None) -> AbstractContextManager[None]:
        """Seed torch by a step's number, by default the next one's."""
        number = self._steps if step is None else step
        return self._randomness.of("server-half", number)

    def _update_rng(self) -> AbstractContextManager[None]:
        # Devices go on meanwhile, and in a simulation of one process they may draw from
        # the same generator: it is left alone where the optimizer is known not to draw.
        if type(self._optimizer).__module__.startswith("torch.optim."):
            return nullcontext()
        return self._step_rng()

    @contextmanager
    def _as_a_whole(self, *, updates: bool = False) -> Iterator[None]:
        """Undo what fails of a step, and refuse it, whatever it fails of.

        Parameters
        ----------
        updates : bool
            Whether weights are updated; before, a step changes nothing but buffers.
        """
        if updates:
            self._undo.save_weights()
        else:
            self._undo.save_buffers()
        try:
            yield
            self._changes += 1
        except Exception as error:
            self._changes += 1
            self._undo.restore()
            if isinstance(error, SplitError):
                raise
            raise StepRefused(
                "the server half cannot apply the step: "
                f"{type(error).__name__}: {error}"
            ) from error


def _loss_on(device: torch.device, loss_fn: LossFn | None) -> LossFn | None:
    """Return a loss whose tensors, such as weights of classes, are on a device.

    It is a copy if they were elsewhere: its user may need it there.
    """
    if not isinstance(loss_fn, nn.Module):
        return loss_fn
    # with its index, as those of tensors
    wanted = torch.empty(0, device=device).device
    tensors = chain(loss_fn.parameters(), loss_fn.buffers())
    if all(tensor.device == wanted for tensor in tensors):
        return loss_fn
    return deepcopy(loss_fn).to(device)


def _copy_of(model: nn.Module) -> nn.Module:
    try:
        return deepcopy(model)
    except Exception as error:
        raise ValueError(
            "each device is to have a copy of the server half, which cannot be copied "
            "(weight_norm of torch.nn.utils cannot, that of its parametrizations can): "
            f"{error}"
        ) from error


def _advice_on_type(model: nn.Module) -> str:
    types = {p.dtype for p in model.parameters() if p.is_floating_point()}
    if not types or torch.float32 in types:
        return ""
    return f" (features arrive as float32: features.to({types.pop()}) in its forward)"


def _cloned(gradient: Tensor | None) -> Tensor | None:
    return None if gradient is None else gradient.clone()


def _itself(leaf: Any) -> Any:
    return leaf


def _copied(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _was_written(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf._version > 0


def _sparse_weights(model: nn.Module) -> set[Tensor]:
    """Return the weights whose gradients are sparse."""
    return {
        module.weight
        for module in model.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse
    }


def _leaf_again(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(tensor.requires_grad)


def _stored(gradient: Tensor | None) -> Tensor | None:
    # that of a sum has one entry in memory, and looks like many
    if gradient is None or gradient.layout is not torch.strided:
        return gradient
    return gradient.contiguous()


def _to_send(leaf: Tensor, gradient: Tensor | None) -> Tensor:
    """Return the gradient by a leaf, on the CPU."""
    # a server half may ignore its input
    there = torch.zeros_like(leaf) if gradient is None else gradient
    return there.cpu()
