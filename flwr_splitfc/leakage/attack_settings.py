"""How much an attacker computes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class AttackSettings:
    """How long and how wide the attacker's network trains, and how long it inverts.

    Parameters
    ----------
    steps : int (default: 1500)
        Mini-batches; Adam, whose learning rate falls along a cosine to zero.
    batch_size : int (default: 64)
    learning_rate : float (default: 2e-3)
        At first.
    width : int (default: 64)
        Channels of a decoder of images.
    seed : int (default: 0)
        Of the network's weights and of the order of samples.
    inversion_steps : int (default: 200)
        Of the inversion of the device half, at most; 0 leaves it out.
    """

    steps: int = 1500
    batch_size: int = 64
    learning_rate: float = 2e-3
    width: int = 64
    seed: int = 0
    inversion_steps: int = 200
