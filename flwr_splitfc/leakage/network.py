"""Reconstruction by a decoder network, which learns the way from features to inputs."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flwr_splitfc.exchange.protocol.seeds import torch_seeded
from flwr_splitfc.leakage.attack_settings import AttackSettings
from flwr_splitfc.leakage.decoders import decoder_for
from flwr_splitfc.leakage.evidence import Evidence, Guesses
from flwr_splitfc.model import LossFn

_ROWS_AT_ONCE = 256


def numbers_by_network(evidence: Evidence, settings: AttackSettings) -> Guesses:
    """Guess inputs of numbers (N, ...)."""
    inputs = evidence.kept.inputs
    mean = inputs.mean(0)
    # the network says how an input differs from their mean
    decoder = _trained(evidence, inputs - mean, F.mse_loss, settings)
    return Guesses(*(mean + output for output in _decoded(decoder, evidence)))


def tokens_by_network(evidence: Evidence, settings: AttackSettings) -> Guesses:
    """Guess tokens (N, T)."""
    tokens = evidence.kept.inputs.long()
    decoder = _trained(evidence, tokens, F.cross_entropy, settings)
    # scores are (M, tokens, ...)
    return Guesses(*(scores.argmax(1) for scores in _decoded(decoder, evidence)))


def _trained(
    evidence: Evidence, wanted: Tensor, loss_fn: LossFn, settings: AttackSettings
) -> nn.Module:
    """Train a decoder from the kept features to what is wanted of each (N, ...)."""
    features = evidence.standard(evidence.kept.features)
    tokens = 0 if wanted.is_floating_point() else int(wanted.max()) + 1
    shapes = features.shape[1:], wanted.shape[1:]
    with torch_seeded(settings.seed):
        decoder = decoder_for(*shapes, settings.width, tokens=tokens)
        optimizer = torch.optim.Adam(decoder.parameters(), lr=settings.learning_rate)
        falls = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
        for _ in range(settings.steps):
            rows = torch.randint(len(features), (settings.batch_size,))
            loss = loss_fn(decoder(features[rows]), wanted[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            falls.step()
    return decoder


@torch.no_grad()
def _decoded(decoder: nn.Module, evidence: Evidence) -> list[Tensor]:
    """Return the outputs for what is held out, and for what is attacked."""
    decoder.eval()
    outputs = []
    for releases in (evidence.held_out, evidence.attacked):
        parts = evidence.standard(releases.features).split(_ROWS_AT_ONCE)
        outputs.append(torch.cat([decoder(rows) for rows in parts]))
    return outputs
