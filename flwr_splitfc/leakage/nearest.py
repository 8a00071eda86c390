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
    half = evidence.half
    known = evidence.known
    if half is None or not _have_places(known):
        return None
    if known.part:
        raise LeftOut("inputs are several tensors")
    vocabulary = _vocabulary(half, int(known.inputs.max()) + 1)
    releases = [evidence.held_out, evidence.attacked]
    samples = sum(len(each.inputs) for each in releases)
    entries = samples * known.features[0].numel()
    if vocabulary * entries > _MOST_PRODUCTS:
        raise LeftOut(f"there are {vocabulary} tokens to compare with: too many")
    parts: list[Releases] = []
    for each in releases:
        parts.extend(at_once(half, each))
    with replayed(half):
        shortlist = _shortlist(evidence, half, parts, vocabulary)
    tried = [shortlist[..., 0]]
    if known.draws and evidence.as_sent:
        with replayed(half, as_sent=True):
            tried.append(_nearest_as_sent(evidence, half, parts, shortlist))
    wanted = evidence.held_out.inputs
    tokens = _best(tried, wanted).to(wanted.dtype)
    held_out = tokens[: len(wanted)]
    attacked = tokens[len(wanted) :]
    return Guesses(held_out, attacked)


def _have_places(known: Releases) -> bool:
    """Tell whether features (N, T, C) have the places of tokens (N, T)."""
    if known.features.ndim != 3:
        return False
    return known.features.shape[1] == known.inputs.shape[1]


def _best(tried: Sequence[Tensor], wanted: Tensor) -> Tensor:
    """Return the tokens (N, T) of which the first, held out, are wrong the least."""
    errors = []
    for tokens in tried:
        held_out = tokens[: len(wanted)]
        is_wrong = held_out != wanted
        errors.append(int(is_wrong.sum()))
    best = errors.index(min(errors))
    return tried[best]


def _vocabulary(half: nn.Module, known: int) -> int:
    """Return the rows of the smallest embedding that has all known tokens."""
    tables = [module for module in half.modules() if isinstance(module, nn.Embedding)]
    counts = [table.num_embeddings for table in tables if table.num_embeddings >= known]
    return min(counts, default=known)


def _shortlist(
    evidence: Evidence, half: nn.Module, parts: Sequence[Releases], vocabulary: int
) -> Tensor:
    """Return the nearest tokens (N, T, K) by what was sent, from the nearest on."""
    features_of_parts = []
    sent_of_parts = []
    for part in parts:
        part_features, part_sent = _in_places(evidence, part)
        features_of_parts.append(part_features)
        sent_of_parts.append(part_sent)
    features = torch.cat(features_of_parts)  # (N, T, C)
    sent = torch.cat(sent_of_parts)
    samples, places, _ = features.shape
    least = torch.empty(samples, places, 0)
    nearest = torch.empty(samples, places, 0, dtype=torch.int64)
    for tokens in torch.arange(vocabulary).split(_TOKENS_AT_ONCE):
        sequences = tokens[:, None].expand(-1, places)  # (V, T)
        token_features = features_of(half, sequences)
        own = token_features.reshape(len(tokens), places, -1)  # (V, T, C)
        distances, rows = _least(_distances(features, sent, own))
        # the nearest of these tokens beside the nearest of those before
        distances = torch.cat([least, distances], dim=2)
        candidates = torch.cat([nearest, tokens[rows]], dim=2)
        least, rows = _least(distances)
        nearest = candidates.gather(2, rows)
    return nearest


def _distances(features: Tensor, sent: Tensor, own: Tensor) -> Tensor:
    """Return the squared distances (N, T, V) to tokens' own features (V, T, C).

    Without the square of what was sent itself, which is the same for all tokens.
    """
    squares = torch.einsum("ntc,vtc->ntv", sent, own.square())
    products = torch.einsum("ntc,vtc->ntv", sent * features, own)
    return squares - 2 * products


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
    flops_of_pass = len(shortlist) * flops_of_row(half, evidence.known)
    passes = int(MOST_FLOPS / max(1, flops_of_pass))
    shortlist = shortlist[..., : max(1, passes)]
    sizes = [len(part.inputs) for part in parts]
    found = []
    for part, tokens in zip(parts, shortlist.split(sizes), strict=True):
        features, sent = _in_places(evidence, part)
        distances = []
        for sequences in tokens.unbind(2):
            own = features_as_sent(half, sequences, part)
            off = (own.reshape(features.shape) - features) * sent
            square = off.square().sum(2)  # (N, T)
            distances.append(square)
        by_token = torch.stack(distances, dim=2)  # (N, T, K)
        rows = by_token.argmin(2, keepdim=True)
        nearest = tokens.gather(2, rows)  # (N, T, 1)
        found.append(nearest[..., 0])
    return torch.cat(found)


def _in_places(evidence: Evidence, releases: Releases) -> tuple[Tensor, Tensor]:
    """Return features (N, T, C) as the half gave them, and what was sent of them."""
    shape = releases.features.shape
    features = evidence.unscaled(releases).reshape(shape)
    sent = evidence.sent(releases).reshape(shape)
    return features, sent
