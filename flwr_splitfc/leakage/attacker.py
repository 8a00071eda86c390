"""The attacker of a run: what it has, and what it tries."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor

from flwr_splitfc.codec import CutCodec
from flwr_splitfc.codec.link import Link
from flwr_splitfc.exchange.protocol.seeds import torch_seeded
from flwr_splitfc.leakage.arrivals import DeviceHalf, arrivals
from flwr_splitfc.leakage.attack import Reconstruction, reconstruct
from flwr_splitfc.leakage.attack_settings import AttackSettings
from flwr_splitfc.leakage.label_inference import (
    LabelInference,
    LabelValues,
    infer_labels,
    nearest_class,
    share_right,
    solved_labels,
)
from flwr_splitfc.leakage.levels import FeatureLoss, Levels, asks_for_levels
from flwr_splitfc.leakage.loaded_run import LoadedRun, UShape
from flwr_splitfc.leakage.releases import released
from flwr_splitfc.model.structures import Structure, mapped

Auxiliary: TypeAlias = Literal["devices", "evaluation"]
"""What the attacker has: the training data of other devices, or evaluation data."""

_Taken = TypeVar("_Taken")
_MOST_ENTRIES = 64  # of a label that is solved for: each takes a pass
_NOT_ATTACKED = "such labels are not attacked, and may well be exact to a server"


class _TailBatch(NamedTuple):
    """A batch as it passed the last layers; the server has all but the labels."""

    seen: Tensor  # the output as it came down
    gradient: Tensor
    link: Link
    labels: Tensor


class Attacked(NamedTuple):
    """What the features of a codec gave away.

    Parameters
    ----------
    outcome : Reconstruction
    bits_per_entry : float
    levelled : bool
        Whether features were attacked as devices send them that a gradient has told to
        level them.
    not_known : str
        Why it is not known whether the run's devices did; both were attacked then.
    """

    outcome: Reconstruction
    bits_per_entry: float
    levelled: bool
    not_known: str


@dataclass(frozen=True, eq=False)
class Attacker:
    """A server that keeps to the protocol, and that has the device half and some data.

    Parameters
    ----------
    run : LoadedRun
    auxiliary : "devices" or "evaluation"
        The training data of half of the devices, drawn by the seed, to attack that of
        the others; or the evaluation data, to attack all training data.
    known, attacked : int
        Samples that it has and that it attacks, at most.
    settings : AttackSettings
        How much it computes.

    Raises
    ------
    ValueError
        If there are no other devices.
    """

    run: LoadedRun
    auxiliary: Auxiliary
    known: int
    attacked: int
    settings: AttackSettings

    def __post_init__(self) -> None:
        if self.auxiliary == "devices" and self.run.num_devices < 2:
            raise ValueError(
                "auxiliary is 'devices', but the run has one device and no others"
            )

    @property
    def known_devices(self) -> list[int]:
        """The devices whose data the attacker has."""
        return self._halves()[0]

    @property
    def attacked_devices(self) -> list[int]:
        """The devices whose data it attacks."""
        return self._halves()[1]

    def _halves(self) -> tuple[list[int], list[int]]:
        count = self.run.num_devices
        if self.auxiliary == "evaluation":
            return list(range(count)), list(range(count))
        draw = torch.Generator().manual_seed(self.settings.seed)
        order: list[int] = torch.randperm(count, generator=draw).tolist()
        return sorted(order[: count // 2]), sorted(order[count // 2 :])

    @property
    def about(self) -> str:
        """Who the attacker is, for people."""
        if self.auxiliary == "evaluation":
            has = "the devices' evaluation data"
            sees = "their training data"
        else:
            known = len(self.known_devices)
            has = f"the training data of {known} of {self.run.num_devices} devices"
            sees = "the training data of the others"
        return (
            f"The attacker is a server that keeps to the protocol. It has the trained "
            f"device half and {has}, and reconstructs {sees} from their features, "
            "each sample from one release."
        )

    def reconstruct(self, codec: CutCodec) -> Attacked:
        """Attack the features of a codec.

        Where it is not known whether the run's devices levelled them, they are attacked
        as if, and as if not, and what comes closer counts.

        Raises
        ------
        ValueError
            If the codec cannot code the features.
        """
        half = self.run.device_half(noise=False)
        levels = self._levels(codec)
        found = []
        for levelled in levels.tried:
            take = partial(released, all_rows=self.run.is_u_shaped, levelled=levelled)
            known, attacked = self._taken(take, codec)
            outcome = reconstruct(known, attacked, self.settings, half=half)
            bits = attacked.bits_per_entry
            found.append(Attacked(outcome, bits, bool(levelled), levels.not_known))
        return max(found, key=lambda each: each.outcome.scores.closeness)

    def infer_labels(self) -> LabelInference | LabelValues:
        """Infer labels from the gradients of the output of a run with a tail.

        Raises
        ------
        ValueError
            If labels are neither a class index for each sample nor numbers in which
            the gradient is affine.
        """
        codec = self.run.codec()
        # where that is not known, u_shape fails for the same reason
        levelled = self._levels(codec).tried[0]
        u_shape = self.run.u_shape()
        take = partial(_tail_batches, u_shape, levelled=levelled)
        known, attacked = self._taken(take, codec)
        with torch_seeded(self.settings.seed):
            if attacked[0].labels.is_floating_point():
                return _values(u_shape, attacked, self.attacked)
            found = infer_labels(
                _joined(known, self.known),
                _joined(attacked, self.attacked),
                self.settings.seed,
            )
            classes = 1 + max(int(each.labels.max()) for each in known + attacked)
            return replace(
                found,
                last_layers=_by_last_layers(u_shape, attacked, classes, self.attacked),
                answer=_by_answer(u_shape, attacked, self.attacked),
            )

    def _levels(self, codec: CutCodec) -> Levels:
        """Return whether the run's devices would level the features of a codec."""
        # where no gradient comes, none asks for it
        if not codec.can_level or self.run.is_decoupled:
            return Levels([None])
        try:
            asked = self._gradient_asks(codec, self.run.loss())
        except Exception as error:
            # of the app's own code, too: its loss may want other labels
            return Levels([None, True], str(error) or type(error).__name__)
        return Levels([asked or None])

    def _gradient_asks(self, codec: CutCodec, loss: FeatureLoss) -> bool:
        """Tell whether that of any batch that is attacked asks for levels."""
        with torch_seeded(self.settings.seed):
            batches = arrivals(
                self._sending_half(),
                codec,
                self.run.batches(self.attacked_devices),
                samples=self.attacked,
                all_rows=self.run.is_u_shaped,
            )
            return any(asks_for_levels(batch, codec, loss) for batch in batches)

    def _taken(
        self, take: Callable[..., _Taken], codec: CutCodec
    ) -> tuple[_Taken, _Taken]:
        """Return what is taken of samples that it knows, and of those it attacks.

        `take` has the parameters of `arrivals`.
        """
        half = self._sending_half()
        evaluation = self.auxiliary == "evaluation"
        seed = self.settings.seed
        # of the codecs alone: batches draw from torch's own
        draw = torch.Generator().manual_seed(seed)
        with torch_seeded(seed):
            known = take(
                half,
                codec,
                self.run.batches(self.known_devices, evaluation=evaluation),
                samples=self.known,
                generator=draw,
            )
            attacked = take(
                half,
                codec,
                self.run.batches(self.attacked_devices),
                samples=self.attacked,
                generator=draw,
            )
        return known, attacked

    def _sending_half(self) -> DeviceHalf:
        """Return the half as devices send its features: with a graph, or decoupled."""
        half = self.run.device_half()
        if not self.run.is_decoupled:
            return half
        return lambda inputs: mapped(half(inputs), Tensor.detach)


def _tail_batches(
    u_shape: UShape,
    device_half: DeviceHalf,
    codec: CutCodec,
    batches: Iterable[tuple[Structure, Tensor]],
    *,
    samples: int,
    generator: torch.Generator,
    levelled: bool | None,
) -> list[_TailBatch]:
    """Return the batches of so many samples; the last one is whole, too."""
    passed = []
    for batch in arrivals(
        device_half,
        codec,
        batches,
        samples=samples,
        generator=generator,
        all_rows=True,
        levelled=levelled,
    ):
        seen, gradient, link = u_shape.gradient(
            batch.features,
            batch.labels,
            labels_per_row=batch.labels_per_row,
            full_rows=batch.full_rows,
        )
        passed.append(_TailBatch(seen, gradient, link, batch.labels))
    return passed


def _joined(batches: list[_TailBatch], samples: int) -> tuple[Tensor, Tensor]:
    """Return the gradients (N, ...) by the output, and the labels (N, ...)."""
    gradients = torch.cat([batch.gradient for batch in batches])
    labels = torch.cat([batch.labels for batch in batches])
    return gradients[:samples], labels[:samples]


def _by_last_layers(
    u_shape: UShape, batches: list[_TailBatch], classes: int, samples: int
) -> float:
    guesses = []
    for seen, gradient, link, labels in batches:
        by_class = [
            u_shape.gradient_for(seen, torch.full_like(labels, each), link)
            for each in range(classes)
        ]
        guesses.append(nearest_class(gradient, torch.stack(by_class)))
    _, labels = _joined(batches, samples)
    return share_right(torch.cat(guesses)[:samples], labels)


def _by_answer(
    u_shape: UShape, batches: list[_TailBatch], samples: int
) -> float | None:
    """Return the share of the model's own answers; None where it has no scores."""
    scores = torch.cat([u_shape.scores(batch.seen) for batch in batches])[:samples]
    if scores.ndim != 2 or scores.shape[1] < 2:
        return None
    _, labels = _joined(batches, samples)
    return share_right(scores.argmax(1), labels)


def _values(u_shape: UShape, batches: list[_TailBatch], samples: int) -> LabelValues:
    """Solve for labels that are numbers."""
    guesses = torch.cat([_solved(u_shape, batch) for batch in batches])
    _, labels = _joined(batches, samples)
    return LabelValues.of(guesses[:samples], labels.reshape(len(labels), -1).double())


def _solved(u_shape: UShape, batch: _TailBatch) -> Tensor:
    """Return the labels (B, K) that explain a batch's gradient."""
    entries = batch.labels[0].numel()
    if entries > _MOST_ENTRIES:
        raise ValueError(f"they have {entries} entries each; {_NOT_ATTACKED}")
    rough = _solved_in_units(u_shape, batch, 1.0)
    # by a unit of 1, float32 loses what numbers of 100,000 differ by
    largest = float(rough.abs().max())
    return _solved_in_units(u_shape, batch, max(largest, 1.0))


def _solved_in_units(u_shape: UShape, batch: _TailBatch, unit: float) -> Tensor:
    """Return the labels by what gradients would be, were entries 0 and a unit."""
    seen, gradient, link, labels = batch
    rows = labels.reshape(len(labels), -1)
    zero = torch.zeros_like(rows)
    entries = rows.shape[1]
    units = unit * torch.eye(entries, dtype=rows.dtype)
    every_other = zero + units.sum(0)
    every_other[1::2] = 0
    at = [zero, *(zero + each for each in units), zero + 2 * units.sum(0), every_other]
    gradients = [u_shape.gradient_for(seen, each.view_as(labels), link) for each in at]
    at_zero, *by_entry, at_twos, at_every_other = gradients
    steps = torch.stack(by_entry) - at_zero
    if not torch.allclose(at_twos, at_zero + 2 * steps.sum(0), rtol=1e-3, atol=1e-6):
        raise ValueError(f"the gradient is not affine in them; {_NOT_ATTACKED}")
    # as by a BatchNorm in the last layers
    others, alone = at_every_other[1::2], at_zero[1::2]
    if not torch.allclose(others, alone, rtol=1e-3, atol=1e-6):
        raise ValueError(
            f"the gradient of a sample goes by other samples' labels; {_NOT_ATTACKED}"
        )
    # (B, M, K); those of a loss that saturates are zeros
    slopes = steps.flatten(2).permute(1, 2, 0)
    if torch.linalg.matrix_rank(slopes).min() < entries:
        raise ValueError(f"the gradient does not determine them; {_NOT_ATTACKED}")
    return unit * solved_labels(gradient, at_zero, torch.stack(by_entry))
