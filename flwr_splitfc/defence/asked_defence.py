"""The defence of features that a run-config or a node's config asks for."""

from dataclasses import dataclass

from flwr.app import Context

from flwr_splitfc.defence.feature_defence import FeatureDefence
from flwr_splitfc.defence.secret_noise import SecretNoise
from flwr_splitfc.settings import RunConfig, read_settings


@dataclass(frozen=True)
class _DefenceSettings:
    """The keys of a run-config, and of a node's config, in snake case."""

    feature_clip_norm: float = 0.0
    feature_noise: float = 0.0
    nopeek: float = 0.0


def defence_of(config: RunConfig, source: SecretNoise | None = None) -> FeatureDefence:
    """Return the defence of a run-config.

    >>> defence_of({"feature-clip-norm": 10.0, "feature-noise": 0.1, "seed": 7})
    FeatureDefence(clip_norm=10.0, noise=0.1, nopeek=0.0)
    """
    settings = read_settings(_DefenceSettings, config)
    return FeatureDefence(
        settings.feature_clip_norm,
        settings.feature_noise,
        settings.nopeek,
        source or SecretNoise(),
    )


def device_defence(
    context: Context, source: SecretNoise | None = None
) -> FeatureDefence:
    """Return a device's defence: its node config wins over the run-config."""
    return defence_of({**context.run_config, **context.node_config}, source)


def check_defence(context: Context, given: FeatureDefence | None, advice: str) -> None:
    """Refuse to send features without the defence that a device's config asks for.

    Parameters
    ----------
    context : Context
        The device's.
    given : FeatureDefence, optional
        What features go through.
    advice : str
        What to do where it is another, for the error.

    Raises
    ------
    ValueError
        If the config asks for another defence.
    """
    asked = device_defence(context)
    if asked not in (FeatureDefence(), given):
        raise ValueError(
            f"the config asks for {asked}, and features go through {given}: {advice}"
        )
