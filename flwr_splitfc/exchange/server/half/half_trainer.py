"""The server half in training: one step is applied as a whole, or not at all.

A step has two parts. The gradient by the features is what a device waits for; applying
the step (the optimizer, and what makes it possible to go back) can follow when the
device has its answer. It is applied before anything else is done with the half.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from copy import deepcopy
from functools import partial
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from flwr_splitfc.exchange.protocol.seeds import SeedPart, seeded_generator
from flwr_splitfc.exchange.protocol.split_errors import SplitError, StepRefused
from flwr_splitfc.exchange.server.half.feature_shapes import (
    FeatureShape,
    as_feature_shape,
)
from flwr_splitfc.exchange.server.half.half_guard import HalfGuard
from flwr_splitfc.exchange.server.half.half_loss import check_loss_of_copy, loss_of
from flwr_splitfc.exchange.server.half.half_passes import HalfPasses
from flwr_splitfc.exchange.server.half.half_randomness import HalfRandomness
from flwr_splitfc.exchange.server.half.half_steps import (
    BegunStep,
    ForwardPass,
    PendingUpdate,
    Update,
)
from flwr_splitfc.exchange.server.half.half_updater import HalfUpdater
from flwr_splitfc.exchange.server.half.replay_memory import KeptBatch, ReplayMemory
from flwr_splitfc.exchange.server.half.step_checks import check_output, check_prediction
from flwr_splitfc.exchange.server.half.step_merger import StepMerger, WaitingBatch
from flwr_splitfc.exchange.server.half.step_undo import StepUndo
from flwr_splitfc.exchange.server.half.trainer_settings import (
    check_loss_fn,
    check_merging,
    check_replay,
    check_scheduler,
    check_shapes,
    check_steps,
    check_trained,
)
from flwr_splitfc.model import LossFn, OptimizerFn, SchedulerFn, loss_on
from flwr_splitfc.model.structures import Structure, mapped, on_device, rows_of


class HalfTrainer:
    """Trains a server half on the features that devices send.

    Many sessions may call it at once: a lock lets one step in at a time. A step is one
    call of `step`, or of `forward` and `backward` where the loss is the device's.
    `begin_step` and `begin_backward` return before the step is applied.

    Parameters
    ----------
    model : nn.Module
        The layers after the cut; moved to `device`, and into training mode. Expanded
        buffers get memory for all their entries.
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
        if self.device.type == "cuda":
            # with its index: another thread may have another GPU for "cuda"
            self.device = torch.empty(0, device=self.device).device
        self._model = model.to(self.device).train()
        _expand_buffers(self._model)
        self.loss_fn = loss_on(self.device, loss_fn)
        self._make_optimizer = optimizer
        self._make_scheduler = scheduler
        made = optimizer(self._model.parameters())
        check_trained(made, self._model)
        schedule = scheduler(made) if scheduler else None
        check_scheduler(schedule)
        self.seed = seed
        self.record_updates = False
        self.feature_shape = as_feature_shape(feature_shape)
        self._updates: list[Update] = []
        self._randomness = HalfRandomness(seed, self.device)
        self._guard = HalfGuard(self._model, self._try_run)
        self._passes = HalfPasses(self._model, self.device, self._guard)
        self._undo = StepUndo(self._model, made, schedule)
        self._updater = HalfUpdater(
            self._model,
            made,
            schedule,
            undo=self._undo,
            guard=self._guard,
            randomness=self._randomness,
            accumulate_steps=accumulate_steps,
            max_grad_norm=max_grad_norm,
        )
        # of the half that this is a copy of, until the first loss is known
        self._originals: list[nn.Parameter] = []
        self._pending: PendingUpdate | None = None
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
        return self._updater.optimizer

    @property
    def scheduler(self) -> LRScheduler | None:
        self.apply_begun()
        return self._updater.scheduler

    @property
    def accumulate_steps(self) -> int:
        return self._updater.accumulate_steps

    @property
    def max_grad_norm(self) -> float | None:
        return self._updater.max_grad_norm

    @property
    def steps(self) -> int:
        self.apply_begun()
        return self._updater.steps

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
        copy._randomness.draws_on_cpu = not beside_others
        copy._originals = list(self._model.parameters())
        return copy

    def end_training(self) -> None:
        """Drop what only further steps need; weights, buffers and counts stay."""
        with self._exclusively():
            self._updater.end()

    def state_dict(self) -> dict[str, Any]:
        """Return all that training goes on from.

        That is weights, buffers, optimizer, scheduler, gradients that are not applied
        yet, and counts.
        """
        with self._exclusively():
            return {
                "model": self._model.state_dict(),
                **self._updater.state_dict(),
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
            self._updater.load_state_dict(state)
            self._updates = [Update(*update) for update in state["updates"]]
            self._updater.try_optimizer(self._make_optimizer(self._model.parameters()))
            self._guard.take_as_good()

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
            return self._passes.again_if_it_writes(partial(self._begun, batch))

    def _begun(self, batch: WaitingBatch) -> BegunStep:
        with self._step_rng(), self._undo.as_a_whole():
            x = self._passes.leaves(batch.features, batch.wanted)
            labels = batch.labels.to(self.device)
            kept = KeptBatch.of(x, labels) if self.replay_steps else None
            loss = loss_of(self.loss_fn, self._passes.run(x), labels)
            if self._originals:
                check_loss_of_copy(loss, self._originals)
                self._originals = []
            return self._begun_back(loss, None, x, batch.origin, kept)

    def _step_together(self, batches: Sequence[WaitingBatch]) -> list[BegunStep]:
        """Make one step of several batches, whole or not at all."""
        with self._exclusively():
            with self._step_rng(), self._undo.as_a_whole():
                leaves = [
                    self._passes.leaves(each.features, each.wanted) for each in batches
                ]
                x = torch.cat(leaves)
                losses = self._losses(x, [each.labels for each in batches])
                sent, grads = self._passes.back_together(losses, leaves)
                begun = [
                    BegunStep(self.apply_begun, loss.item(), gradients)
                    for loss, gradients in zip(losses, sent, strict=True)
                ]
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
            x = self._passes.leaves(features, wanted)
            passed = self._passes.again_if_it_writes(partial(self._passed, x))
            check_output(passed.output, rows_of(features))
        return passed

    def _passed(self, x: Structure) -> ForwardPass:
        with self._step_rng():
            return self._pass(x, self._updater.steps)

    def _pass(self, x: Structure, step: int) -> ForwardPass:
        output, buffers = self._passes.run_aside(x)
        return ForwardPass(x, output, buffers, step, self._undo.changes)

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
        with self._exclusively(), self._step_rng(passed.step), self._undo.as_a_whole():
            # torch refuses a graph whose tensors were written since
            if passed.changes != self._undo.changes:
                features = mapped(passed.features, _leaf_again)
                passed = self._pass(features, passed.step)
            self._passes.take_buffers(passed.buffers)
            return self._begun_back(
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
        StepRefused
            What it gives is no structure of tensors, or the step before, which is
            applied first, cannot be.
        """
        with self._exclusively(), self._step_rng():
            output = self._passes.predict(features)
        check_prediction(output)
        return on_device(output, torch.device("cpu"))

    def _losses(self, x: Tensor, labels: Sequence[Tensor]) -> list[Tensor]:
        """Return the loss of each batch, whose rows follow one another in `x`."""
        outputs = self._passes.run(x)
        check_output(outputs, len(x))
        parts = outputs.split([len(of_batch) for of_batch in labels])
        return [
            loss_of(self.loss_fn, part, of_batch.to(self.device))
            for part, of_batch in zip(parts, labels, strict=True)
        ]

    def _begun_back(
        self,
        out: Tensor,
        out_grad: Tensor | None,
        x: Structure,
        origin: Update | None,
        kept: KeptBatch | None = None,
    ) -> BegunStep:
        """Go back from `out` to `x`, and leave the step to be applied."""
        gradients, grads = self._passes.back(out, x, out_grad)
        loss = 0.0 if out.ndim else out.item()
        begun = BegunStep(self.apply_begun, loss, gradients)
        detached = mapped(x, lambda tensor: tensor.detach())
        self._pending = PendingUpdate(begun, grads, detached, origin, kept)
        return begun

    # a prediction, or who reads the weights, may have turned gradients off
    @torch.inference_mode(False)
    @torch.enable_grad()
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
            name = ("replay", self._updater.steps, number)
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
        with self._randomness.of(*name), self._undo.as_a_whole():
            output = self._passes.run(batch.features)
            loss = loss_of(self.loss_fn, output, batch.labels)
            _, grads = self._passes.back(loss, None)
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
        self._updater.apply(grads, features, len(origins))
        if self.record_updates:
            self._updates += [
                origin._replace(merged=len(origins))
                for origin in origins
                if origin is not None
            ]

    @contextmanager
    def _exclusively(self) -> Iterator[None]:
        """Keep other sessions out; all steps that were begun are applied."""
        with self._lock:
            self._apply_pending()
            yield

    def _step_rng(self, step: int | None = None) -> AbstractContextManager[None]:
        """Seed torch by a step's number, by default the next one's."""
        number = self._updater.steps if step is None else step
        return self._randomness.of_step(number)

    def _try_run(self, model: Callable[[Structure], Any], x: Structure) -> Any:
        with self._step_rng():
            return self._passes.run_as(model, x)


def _expand_buffers(model: nn.Module) -> None:
    # torch loads no state into one entry that is shown as many
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            is_dense = buffer.layout is torch.strided
            if is_dense and buffer.nbytes > buffer.untyped_storage().nbytes():
                setattr(module, name, buffer.contiguous())


def _copy_of(model: nn.Module) -> nn.Module:
    try:
        return deepcopy(model)
    except Exception as error:
        raise ValueError(
            "each device is to have a copy of the server half, which cannot be copied "
            "(weight_norm of torch.nn.utils cannot, that of its parametrizations can): "
            f"{error}"
        ) from error


def _leaf_again(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(tensor.requires_grad)
