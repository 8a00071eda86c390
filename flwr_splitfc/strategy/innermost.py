"""The strategies in `devices`: one around another, as for differential privacy.

Who is sampled, and by what replies are weighted, the innermost says.
"""

from flwr.serverapp.strategy import Strategy


def layers(devices: Strategy) -> list[Strategy]:
    """Return a strategy and those that it is around, the innermost last.

    Flower's wrappers have the strategy that they are around as ``strategy``.
    """
    inner = getattr(devices, "strategy", None)
    return [devices, *layers(inner)] if isinstance(inner, Strategy) else [devices]


def innermost(devices: Strategy) -> Strategy:
    """Return the strategy that others are around; `devices` itself if it is alone."""
    return layers(devices)[-1]


def name_of(devices: Strategy) -> str:
    """Return the names of the classes.

    >>> from flwr.serverapp.strategy import FedAvg
    >>> name_of(FedAvg())
    'FedAvg'
    """
    return " around ".join(type(layer).__name__ for layer in layers(devices))
