"""Reconstruction of tokens: the one whose features, at the same place, are nearest.

The server has the device half, and so the features of each token: those of a sequence
of that token alone. At a cut behind an embedding, with or without places, they are
exact.

Where the half draws, as dropout does, features are those with dropout off, and the
nearest few tokens are compared once more, drawn as the batch was.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flwr_splitfc.leakage.attack_settings import AttackSettings
from flwr_splitfc.leakage.evidence import Evidence, Guesses, LeftOut
from flwr_splitfc.leakage.releases import Releases
from flwr_splitfc.leakage.replay import (
    MOST_FLOPS,
    at_once,
    features_as_sent,
    features_of,
    flops_of_row,
    replayed,
)

_TOKENS_AT_ONCE = 256
_SHORTLIST = 64  # tokens at each place, of which each costs a pass over each batch
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
    parts = [part for each in releases for part in at_once(half, each)]
    with replayed(half):
        shortlist = _shortlist(evidence, half, parts, vocabulary)
    tried = [shortlist[..., 0]]
    if known.draws and evidence.as_sent:
        with replayed(half, as_sent=True):
            tried.append(_nearest_as_sent(evidence, half, parts, shortlist))
    wanted = evidence.held_out.inputs
    held_out = len(wanted)
    best = min(tried, key=lambda tokens: int((tokens[:held_out] != wanted).sum()))
    return Guesses(*best.to(wanted.dtype).tensor_split([held_out]))


def _vocabulary(half: nn.Module, known: int) -> int:
    """Return the rows of the smallest embedding that has all known tokens."""
    tables = [module for module in half.modules() if isinstance(module, nn.Embedding)]
    counts = [table.num_embeddings for table in tables if table.num_embeddings >= known]
    return min(counts, default=known)


def _shortlist(
    evidence: Evidence, half: nn.Module, parts: Sequence[Releases], vocabulary: int
) -> Tensor:
    """Return the nearest tokens (N, T, K) by what was sent, from the nearest on."""
    pairs = [_in_places(evidence, part) for part in parts]
    features, sent = (torch.cat(column) for column in zip(*pairs, strict=True))
    places = features.shape[1]
    least = torch.empty(*features.shape[:2], 0)
    nearest = torch.empty(*features.shape[:2], 0, dtype=torch.int64)
    for tokens in torch.arange(vocabulary).split(_TOKENS_AT_ONCE):
        sequences = tokens[:, None].expand(-1, places)
        own = features_of(half, sequences).reshape(len(tokens), places, -1)
        # the square of what was sent itself is the same for all tokens
        squares = torch.einsum("ntc,vtc->ntv", sent, own.square())
        products = torch.einsum("ntc,vtc->ntv", sent * features, own)
        distances, rows = _least(squares - 2 * products)
        nearest = torch.cat([nearest, tokens[rows]], dim=2)
        least, rows = _least(torch.cat([least, distances], dim=2))
        nearest = nearest.gather(2, rows)
    return nearest


def _least(distances: Tensor) -> tuple[Tensor, Tensor]:
    """Return the least of distances (N, T, V), in order, and where they are."""
    count = min(_SHORTLIST, distances.shape[2])
    least, rows = distances.topk(count, largest=False)
    return least, rows


def _nearest_as_sent(
    evidence: Evidence, half: nn.Module, parts: Sequence[Releases], shortlist: Tensor
) -> Tensor:
    """Return the tokens (N, T) of a shortlist (N, T, K) that are nearest as sent.

    Of a large half only the first few are compared.
    """
    of_pass = len(shortlist) * flops_of_row(half, evidence.known)
    shortlist = shortlist[..., : max(1, int(MOST_FLOPS / max(1, of_pass)))]
    sizes = [len(part.inputs) for part in parts]
    found = []
    for part, tokens in zip(parts, shortlist.split(sizes), strict=True):
        features, sent = _in_places(evidence, part)
        distances = []
        for sequences in tokens.unbind(2):
            own = features_as_sent(half, sequences, part).reshape(features.shape)
            distances.append(((own - features) * sent).square().sum(2))
        rows = torch.stack(distances, dim=2).argmin(2, keepdim=True)
        found.append(tokens.gather(2, rows)[..., 0])
    return torch.cat(found)


def _in_places(evidence: Evidence, releases: Releases) -> tuple[Tensor, Tensor]:
    """Return features (N, T, C) as the half gave them, and what was sent of them."""
    shape = releases.features.shape
    features, sent = evidence.unscaled(releases), evidence.sent(releases)
    return features.reshape(shape), sent.reshape(shape)
