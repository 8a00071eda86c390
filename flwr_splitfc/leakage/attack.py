"""Reconstruction of inputs from features: some attacks, of which the best is used.

The attacker has the features of samples whose inputs it knows, learns the way from one
to the other, and applies it to the features of samples that it does not know. A network
that learns it is a "black-box inverse network" of He, Zhang and Lee, "Model inversion
attacks against collaborative inference", ACSAC 2019. Where features are precise, ridge
regression often comes closer. A server has the device half, too, and undoes it: by
least squares where it is linear, and otherwise step by step from the best guess so far.
And so it has the features of known samples without noise, which teach it more than one
noisy release of each.

All are judged on known samples that none of them learned from.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flwr_splitfc.leakage.attack_settings import AttackSettings
from flwr_splitfc.leakage.evidence import Attack, Evidence, Guesses, LeftOut
from flwr_splitfc.leakage.inversion import by_inversion
from flwr_splitfc.leakage.least_squares import by_least_squares
from flwr_splitfc.leakage.nearest import by_nearest
from flwr_splitfc.leakage.network import numbers_by_network, tokens_by_network
from flwr_splitfc.leakage.posterior import by_posterior
from flwr_splitfc.leakage.releases import Releases
from flwr_splitfc.leakage.replay import comes_again, without_noise
from flwr_splitfc.leakage.ridge import by_clean_ridge, by_column_ridge, by_ridge
from flwr_splitfc.leakage.scores import Scores, scores_of
from flwr_splitfc.leakage.units import InUnits, Units
from flwr_splitfc.model import LossFn

_NOT_AGAIN = (
    "features of known samples do not come again with it, and come closer with dropout "
    "off"
)


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """What an attack came to on samples that it did not train on.

    Parameters
    ----------
    inputs, guesses : Tensor of shape (N, ...)
        Inputs are float32, or integers where they are tokens.
    scores : Scores
        Of the guesses. Where inputs are no images, each column is in its unit by all
        samples, known and attacked, and the MSE is over the columns' mean variance.
    trivial : Scores
        Of the attack that always guesses the mean of the inputs that it knows, or
        their commonest tokens.
    attack : str
        What the guesses are made by: "network", "ridge", "column ridge" (ridge
        regression on the columns that came with each batch), "clean ridge" (that on
        known features before noise and codec), "posterior" (the mean of known inputs,
        weighted by how likely each is), "least squares", "inversion", or "mean" where
        none was better than the trivial attack; of tokens "network", "nearest" or
        "commonest".
    known_count : int
        How many samples the attacker had.
    part : str
        Which tensor the inputs are, where a sample has several.
    left_out : dict of str to str
        Attacks that could not be tried, and why.
    knows_draws : bool
        Whether the half drew from torch's generator, as dropout does, and inversion and
        nearest tokens went by what it drew.
    """

    inputs: Tensor
    guesses: Tensor
    scores: Scores
    trivial: Scores
    attack: str
    known_count: int
    part: str = ""
    left_out: Mapping[str, str] = field(default_factory=dict)
    knows_draws: bool = False


def reconstruct(
    known: Releases,
    attacked: Releases,
    settings: AttackSettings | None = None,
    *,
    half: nn.Module | None = None,
) -> Reconstruction:
    """Learn from samples that are known to guess the inputs of others.

    Parameters
    ----------
    known : Releases
        Features and inputs that the attacker has, of two samples or more.
    attacked : Releases
        Features that the attacker has, and inputs that are only compared with.
    settings : AttackSettings, optional
    half : nn.Module, optional
        The device half that made the features, in the modes in which it made them, and
        without the noise of a defence. It is left as it is. Without it there are
        neither least squares nor inversion, nor nearest tokens, and known features
        before the codec are those with noise.

    Raises
    ------
    ValueError
        If inputs are neither numbers nor tokens, which are integers from 0, (N, T); or
        if one sample is known.
    """
    if len(known.inputs) < 2:
        raise ValueError("the attacker has one sample: wanted 2 or more")
    known, attacked = (_with_inputs(releases) for releases in (known, attacked))
    all_known, inputs = known.inputs, attacked.inputs
    units = Units.of(all_known)
    if units is not None:
        known, attacked = (_without(units, releases) for releases in (known, attacked))
        half = None if half is None else InUnits(half, units)
    evidence = Evidence(known, attacked, half)
    evidence = replace(evidence, as_sent=comes_again(evidence))
    evidence = replace(evidence, known=without_noise(evidence))
    settings = settings or AttackSettings()
    guess = _guess_numbers if known.inputs.is_floating_point() else _guess_tokens
    attack, guesses, left_out = guess(evidence, settings)
    if not evidence.as_sent:
        left_out["what the half draws"] = _NOT_AGAIN
    trivial = _trivial(known.inputs)
    if units is not None:
        guesses, trivial = units.restored(guesses), units.restored(trivial)
    return Reconstruction(
        inputs=inputs,
        guesses=guesses,
        scores=_scores(all_known, inputs, guesses),
        trivial=_scores(all_known, inputs, trivial.expand_as(guesses)),
        attack=attack,
        known_count=len(known.inputs),
        part=known.part,
        left_out=left_out,
        knows_draws=bool(attacked.draws) and evidence.as_sent,
    )


def _with_inputs(releases: Releases) -> Releases:
    """Return releases whose inputs are float32, or tokens."""
    inputs = releases.inputs
    if inputs.is_complex():
        raise ValueError(f"inputs are {inputs.dtype}: wanted real numbers or tokens")
    if _are_tokens(inputs):
        if inputs.min() < 0:
            raise ValueError(
                f"inputs are {inputs.dtype} from {inputs.min()}: wanted "
                "floating-point numbers, or integers from 0"
            )
        return releases
    return replace(releases, inputs=inputs.float())


def _without(units: Units, releases: Releases) -> Releases:
    return replace(releases, inputs=units.removed(releases.inputs))


def _scores(known: Tensor, inputs: Tensor, guesses: Tensor) -> Scores:
    """Compare guesses (M, ...) with inputs, in units by all samples.

    The attacker does not have these: in its own, what hardly varies among the samples
    that it knows, and more among others, would be the whole error.
    """
    units = Units.of(known, inputs)
    if units is not None:
        parts = [units.removed(part) for part in (known, inputs, guesses)]
        # less than 1 where a unit is more than the spread, and 0 of what never varies
        variance = torch.cat(parts[:2]).var(0).mean()
        spread = variance.sqrt().item() or 1.0
        known, inputs, guesses = (part / spread for part in parts)
    return scores_of(inputs, guesses, float(known.max() - known.min()))


def _are_tokens(inputs: Tensor) -> bool:
    """Tell tokens (N, T) from numbers: an image of integers has other dimensions."""
    is_integer = not (inputs.is_floating_point() or inputs.dtype == torch.bool)
    return is_integer and inputs.ndim == 2


def _trivial(inputs: Tensor) -> Tensor:
    """Return what is guessed without features."""
    return inputs.mean(0) if inputs.is_floating_point() else inputs.mode(0).values


def _constant(evidence: Evidence, settings: AttackSettings) -> Guesses:
    guess = _trivial(evidence.kept.inputs)
    unseen = evidence.held_out.inputs, evidence.attacked.inputs
    return Guesses(*(guess.expand(len(inputs), *guess.shape) for inputs in unseen))


# the first sees no features, and is the best of equals
_OF_NUMBERS: dict[str, Attack] = {
    "mean": _constant,
    "ridge": by_ridge,
    "clean ridge": by_clean_ridge,
    "column ridge": by_column_ridge,
    "posterior": by_posterior,
    "least squares": by_least_squares,
    "network": numbers_by_network,
}
_OF_TOKENS: dict[str, Attack] = {
    "commonest": _constant,
    "network": tokens_by_network,
    "nearest": by_nearest,
}


def _guess_numbers(
    evidence: Evidence, settings: AttackSettings
) -> tuple[str, Tensor, dict[str, str]]:
    """Return the best attack's name and its guesses (M, ...), and what is left out."""
    low, high = evidence.bounds
    tried, left_out = _tried(_OF_NUMBERS, evidence, settings)
    within = {
        name: Guesses(*(part.clamp(low, high) for part in guesses))
        for name, guesses in tried.items()
    }
    best = _best(within, evidence, F.mse_loss)
    # it goes on from there, and only where that is closer
    try:
        moved = by_inversion(evidence, settings, within[best])
    except LeftOut as reason:
        left_out["inversion"] = str(reason)
        moved = None
    if moved is not None:
        return "inversion", moved.attacked, left_out
    return best, within[best].attacked, left_out


def _guess_tokens(
    evidence: Evidence, settings: AttackSettings
) -> tuple[str, Tensor, dict[str, str]]:
    tried, left_out = _tried(_OF_TOKENS, evidence, settings)
    best = _best(
        tried, evidence, lambda guesses, tokens: (guesses != tokens).float().mean()
    )
    return best, tried[best].attacked, left_out


def _tried(
    attacks: Mapping[str, Attack], evidence: Evidence, settings: AttackSettings
) -> tuple[dict[str, Guesses], dict[str, str]]:
    """Return the guesses of each attack that has a place, and why others have none."""
    tried, left_out = {}, {}
    for name, attack in attacks.items():
        try:
            guesses = attack(evidence, settings)
        except LeftOut as reason:
            left_out[name] = str(reason)
        else:
            if guesses is not None:
                tried[name] = guesses
    return tried, left_out


def _best(tried: Mapping[str, Guesses], evidence: Evidence, error_of: LossFn) -> str:
    """Return the name of what is best on the samples held out."""
    wanted = evidence.held_out.inputs
    errors = {
        name: error_of(guesses.held_out, wanted).item()
        for name, guesses in tried.items()
    }
    # of equals the first, which is the one that sees no features
    return min(errors, key=errors.__getitem__)
