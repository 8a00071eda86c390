"""Reconstruction of tokens: the one whose features, at the same place, are nearest.

The server has the device half, and so the features of each token: those of a sequence
of that token alone. At a cut behind an embedding, with or without places, they are
exact.
"""

import torch
from torch import Tensor, nn

from flwr_splitfc.leakage.attack_settings import AttackSettings
from flwr_splitfc.leakage.evidence import Evidence, Guesses, LeftOut
from flwr_splitfc.leakage.replay import features_of, replayed

_TOKENS_AT_ONCE = 256
_MOST_PRODUCTS = 1e12  # a minute of a core


@torch.no_grad()
def by_nearest(evidence: Evidence, settings: AttackSettings) -> Guesses | None:
    """Guess tokens (M, T) from features (M, T, C); None where they have no places.

    Raises
    ------
    LeftOut
        If the half fails, or there are too many tokens.
    """
    half, known = evidence.half, evidence.known
    has_places = known.features.ndim == 3 and (
        known.features.shape[1] == known.inputs.shape[1]
    )
    if half is None or not has_places:
        return None
    if known.part:
        raise LeftOut("inputs are several tensors")
    vocabulary = _vocabulary(half, int(known.inputs.max()) + 1)
    releases = [evidence.held_out, evidence.attacked]
    samples = sum(len(each.inputs) for each in releases)
    if samples * vocabulary * known.features[0].numel() > _MOST_PRODUCTS:
        raise LeftOut(f"there are {vocabulary} tokens to compare with: too many")
    shape = known.features.shape[1:]
    features = torch.cat([evidence.unscaled(each) for each in releases])
    sent = torch.cat([evidence.sent(each) for each in releases])
    features, sent = features.reshape(-1, *shape), sent.reshape(-1, *shape)
    with replayed(half):
        found = _found(half, features, sent, vocabulary).to(known.inputs.dtype)
    held_out = len(evidence.held_out.inputs)
    return Guesses(found[:held_out], found[held_out:])


def _vocabulary(half: nn.Module, known: int) -> int:
    """Return the rows of the smallest embedding that has all known tokens."""
    tables = [module for module in half.modules() if isinstance(module, nn.Embedding)]
    counts = [table.num_embeddings for table in tables if table.num_embeddings >= known]
    return min(counts, default=known)


def _found(half: nn.Module, features: Tensor, sent: Tensor, vocabulary: int) -> Tensor:
    """Return the nearest tokens (N, T) to features (N, T, C), by what was sent."""
    _, places, _ = features.shape
    least = torch.full(features.shape[:2], torch.inf)
    nearest = torch.zeros(features.shape[:2], dtype=torch.int64)
    for tokens in torch.arange(vocabulary).split(_TOKENS_AT_ONCE):
        sequences = tokens[:, None].expand(-1, places)
        own = features_of(half, sequences).reshape(len(tokens), places, -1)
        # the square of what was sent itself is the same for all tokens
        squares = torch.einsum("ntc,vtc->ntv", sent, own.square())
        products = torch.einsum("ntc,vtc->ntv", sent * features, own)
        distances, rows = (squares - 2 * products).min(2)
        nearest = torch.where(distances < least, tokens[rows], nearest)
        least = torch.minimum(distances, least)
    return nearest
