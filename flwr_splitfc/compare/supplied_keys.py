"""Keys that a `SplitServerApp` understands and the app's run-config does not name."""

import sys
from dataclasses import fields
from importlib import import_module
from pathlib import Path

from flwr_splitfc.apps.run_settings import RunSettings
from flwr_splitfc.apps.server_app import SplitServerApp
from flwr_splitfc.codec import codec_table
from flwr_splitfc.settings import Scalar

_LEARNING_RATE = (
    1e-3  # of its type alone: without the key the app's optimizer has its own
)
_CODEC_KEYS: dict[str, Scalar] = {
    "codec": "float32",
    "codec-settings": "",
    "output-codec": "float32",
    "output-codec-settings": "",
    # 0 leaves a number to the codec
    "uplink-bits": 0.0,
    "downlink-bits": 0.0,
    "quality": 0.0,
}


def supplied_keys(folder: Path, server_app: str) -> dict[str, Scalar]:
    """Return the keys with their defaults; none for another kind of ServerApp.

    Parameters
    ----------
    folder : Path
        The app's.
    server_app : str
        ``module:name``; it is imported.
    """
    if not isinstance(_imported(folder, server_app), SplitServerApp):
        return {}
    keys: dict[str, Scalar] = {"learning-rate": _LEARNING_RATE}
    for entry in codec_table():
        for name, value in entry.own_settings.items():
            if value is not None:
                keys[_key(name)] = value
    for field in fields(RunSettings):
        if field.default is not None:
            keys[_key(field.name)] = field.default  # type: ignore[assignment]
    return {**keys, **_CODEC_KEYS}


def _key(name: str) -> str:
    return name.replace("_", "-")


def _imported(folder: Path, component: str) -> object:
    module, _, name = component.partition(":")
    sys.path.insert(0, str(folder))
    try:
        return getattr(import_module(module), name)
    except Exception:
        # an app that cannot be imported has no keys; its runs say why
        return None
    finally:
        sys.path.remove(str(folder))
