"""The attacker of a run: what it has, and what it tries."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from flwr_splitfc.codec import CutCodec
from flwr_splitfc.compare.flower_app import SettingsError
from flwr_splitfc.exchange.protocol.seeds import torch_seeded
from flwr_splitfc.leakage.attack import Reconstruction, reconstruct
from flwr_splitfc.leakage.attack_settings import AttackSettings
from flwr_splitfc.leakage.label_inference import LabelInference, infer_labels
from flwr_splitfc.leakage.loaded_run import LoadedRun, UShape
from flwr_splitfc.leakage.releases import Releases, released

Auxiliary: TypeAlias = Literal["devices", "evaluation"]
"""What the attacker has: the training data of other devices, or evaluation data."""

_ROWS_AT_ONCE = 64


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
    SettingsError
        If there are no other devices.
    """

    run: LoadedRun
    auxiliary: Auxiliary
    known: int
    attacked: int
    settings: AttackSettings

    def __post_init__(self) -> None:
        if self.auxiliary == "devices" and self.run.num_devices < 2:
            raise SettingsError(
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

    def reconstruct(self, codec: CutCodec) -> tuple[Reconstruction, float]:
        """Attack the features of a codec; return also their bits per entry.

        Raises
        ------
        ValueError
            If the codec cannot code the features.
        """
        known, attacked = self._releases(codec, all_rows=self.run.is_u_shaped)
        half = self.run.device_half(noise=False)
        outcome = reconstruct(known, attacked, self.settings, half=half)
        return outcome, attacked.bits_per_entry

    def infer_labels(self) -> LabelInference:
        """Infer labels from the gradients of the output of a run with a tail."""
        u_shape = self.run.u_shape()
        known, attacked = self._releases(self.run.codec(), all_rows=True)
        return infer_labels(
            (_gradients(u_shape, known), known.labels),
            (_gradients(u_shape, attacked), attacked.labels),
            self.settings.seed,
        )

    def _releases(
        self, codec: CutCodec, *, all_rows: bool = False
    ) -> tuple[Releases, Releases]:
        """Return what the attacker knows, and what it attacks."""
        half = self.run.device_half()
        evaluation = self.auxiliary == "evaluation"
        seed = self.settings.seed
        # of the codecs alone: batches draw from torch's own
        draw = torch.Generator().manual_seed(seed)
        with torch_seeded(seed):
            known = released(
                half,
                codec,
                self.run.batches(self.known_devices, evaluation=evaluation),
                samples=self.known,
                generator=draw,
                all_rows=all_rows,
            )
            attacked = released(
                half,
                codec,
                self.run.batches(self.attacked_devices),
                samples=self.attacked,
                generator=draw,
                all_rows=all_rows,
            )
        return known, attacked


def _gradients(u_shape: UShape, releases: Releases) -> Tensor:
    gradients = []
    rows = torch.arange(len(releases.labels)).split(_ROWS_AT_ONCE)
    for batch in rows:
        labels = releases.labels[batch]
        gradients.append(u_shape.gradient(releases.features[batch], labels))
    return torch.cat(gradients)
