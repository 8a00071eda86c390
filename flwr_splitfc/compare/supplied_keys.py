"""Keys that a `SplitServerApp` understands and the app's run-config does not name."""

import sys
from dataclasses import fields
from pathlib import Path

from flwr_splitfc.apps.run_settings import RunSettings
from flwr_splitfc.apps.server_app import SplitServerApp
from flwr_splitfc.codec import codec_table
from flwr_splitfc.compare.workers.run_client_app import load_component
from flwr_splitfc.exchange.server.endpoint.endpoint_config import ENDPOINT_KEYS
from flwr_splitfc.settings import Scalar, key_of

_LEARNING_RATE = (
    1e-3  # of its type alone: without the key the app's optimizer has its own
)
_PREFIXES = ("", "output-")  # of the keys of both codecs
_CODEC_KEYS: dict[str, Scalar] = {
    "codec": "float32",
    "codec-settings": "",
    # 0 leaves a number to the codec
    "uplink-bits": 0.0,
    "downlink-bits": 0.0,
    "quality": 0.0,
}


def is_split_server_app(folder: Path, server_app: str) -> bool:
    """Tell whether an app's ServerApp is a `SplitServerApp`.

    Parameters
    ----------
    folder : Path
        The app's.
    server_app : str
        ``module:name``; it is imported.
    """
    return isinstance(_imported(folder, server_app), SplitServerApp)


def supplied_keys() -> dict[str, Scalar]:
    """Return the keys with their defaults."""
    keys: dict[str, Scalar] = {"learning-rate": _LEARNING_RATE}
    for key, kind in ENDPOINT_KEYS.items():
        keys[key] = kind()  # of its type alone, too
    for field in fields(RunSettings):
        if field.default is not None:
            keys[key_of(field.name)] = field.default  # type: ignore[assignment]
    for prefix in _PREFIXES:
        for key, value in _codec_keys().items():
            keys[prefix + key] = value
    return keys


def _codec_keys() -> dict[str, Scalar]:
    """Return a codec and all settings that one may have; None is 0, as not set."""
    keys: dict[str, Scalar] = {}
    for entry in codec_table():
        for name, value in entry.settings.items():
            keys[key_of(name)] = 0 if value is None else value
    return {**keys, **_CODEC_KEYS}


def _imported(folder: Path, component: str) -> object:
    sys.path.insert(0, str(folder))
    try:
        return load_component(component)
    except Exception:
        # an app that cannot be imported has no keys; its runs say why
        return None
    finally:
        sys.path.remove(str(folder))
