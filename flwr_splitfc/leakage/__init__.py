"""What features give away: a reconstruction attack, and label inference.

Behind `flwr-splitfc leakage`; needs ``pip install "flwr-splitfc[leakage]"``.
"""

from flwr_splitfc.leakage.attack import Reconstruction, reconstruct
from flwr_splitfc.leakage.attack_settings import AttackSettings
from flwr_splitfc.leakage.decoders import decoder_for
from flwr_splitfc.leakage.label_inference import (
    LabelInference,
    LabelValues,
    infer_labels,
)
from flwr_splitfc.leakage.releases import Draws, Releases, released
from flwr_splitfc.leakage.scores import Scores, scores_of

__all__ = [
    "AttackSettings",
    "Draws",
    "LabelInference",
    "LabelValues",
    "Reconstruction",
    "Releases",
    "Scores",
    "decoder_for",
    "infer_labels",
    "reconstruct",
    "released",
    "scores_of",
]
