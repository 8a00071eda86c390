"""The Flower app whose runs are compared: its settings, its components, its files."""

import hashlib
import json
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from flwr_splitfc.compare.supplied_keys import is_split_server_app, supplied_keys
from flwr_splitfc.run.app_keys import flat_settings
from flwr_splitfc.settings import (
    RunConfig,
    Scalar,
    check_int64,
    parse_toml_value,
    under_key,
)


@dataclass(frozen=True)
class Layer:
    """Some settings, which win over those of the layers below.

    Parameters
    ----------
    source : str
        Where they come from, for error messages: a file or an option.
    settings : mapping
        By their keys in the app's run-config.
    """

    source: str
    settings: RunConfig

    @classmethod
    def from_file(cls, path: Path) -> "Layer":
        """Read a run-config file."""
        return cls(str(path), read_run_config(path))


# The comparison reads these, or sets them.
_ALWAYS = (
    "strategy",
    "codec",
    "uplink-bits",
    "downlink-bits",
    "seed",
    "num-devices",
    "results-dir",
    "checkpoint-dir",
)


@dataclass(frozen=True)
class FlowerApp:
    """A Flower app as its ``pyproject.toml`` describes it.

    Parameters
    ----------
    folder : Path
    server_app, client_app : str
        Its components, ``module:name``.
    defaults : mapping
        Its run-config.
    """

    folder: Path
    server_app: str
    client_app: str
    defaults: RunConfig

    @classmethod
    def load(cls, folder: Path) -> "FlowerApp":
        """Read ``[tool.flwr.app]``.

        Raises
        ------
        ValueError
            If the folder holds no Flower app, or one that has no ``results-dir``.
        """
        path = folder.resolve() / "pyproject.toml"
        if not path.exists():
            raise ValueError(f"{folder} is no app: no pyproject.toml in {path.parent}")
        project = _read_toml(path)
        try:
            app = project["tool"]["flwr"]["app"]
            server_app = app["components"]["serverapp"]
            client_app = app["components"]["clientapp"]
            defaults = flat_settings(app["config"])
        except KeyError as error:
            raise ValueError(
                f"{path} describes no Flower app: it has no {error} of [tool.flwr.app]"
            ) from error
        loaded = cls(path.parent, server_app, client_app, defaults)
        if "results-dir" not in loaded.known:
            raise ValueError(
                f"{path} has no results-dir in [tool.flwr.app.config]: "
                "the app must write there"
            )
        return loaded

    @cached_property
    def has_split_server_app(self) -> bool:
        """Whether its ServerApp is a `SplitServerApp`."""
        return is_split_server_app(self.folder, self.server_app)

    @cached_property
    def known(self) -> RunConfig:
        """The keys that a setting may have, each with a value of its type.

        They are the app's, and with a `SplitServerApp` those that it understands, too.
        """
        supplied = supplied_keys() if self.has_split_server_app else {}
        return {**supplied, **self.defaults}

    def check_keys(self, layers: Iterable[Layer]) -> None:
        """Refuse settings whose keys the app does not have, all of them at once.

        Flower itself does not say which key it was, nor where it came from.

        Raises
        ------
        ValueError
        """
        missing = {}
        for layer in layers:
            unknown = sorted(layer.settings.keys() - self.known.keys())
            if unknown:
                missing[layer.source] = ", ".join(map(repr, unknown))
        if missing:
            lines = [f"{source}: {keys}" for source, keys in missing.items()]
            known = ", ".join(sorted(self.known))
            raise ValueError(
                f"the app in {self.folder} has no setting for\n  "
                + "\n  ".join(lines)
                + f"\nit has {known}"
            )

    def run_config(self, layers: Iterable[Layer]) -> dict[str, Scalar]:
        """Return the complete run-config: the app's defaults under all layers.

        Raises
        ------
        ValueError
            If a layer has a key that the app does not have, or a value of another type.
        """
        layers = list(layers)
        self.check_keys(layers)
        merged = dict(self.defaults)
        for key in _ALWAYS:
            if key in self.known:
                merged[key] = self.known[key]
        for layer in layers:
            for key, value in layer.settings.items():
                merged[key] = _like(self.known[key], value, f"{layer.source}: {key}")
        return merged

    def fingerprint(self) -> str:
        """Return a digest of the app's Python files, in hexadecimal."""
        names = []
        for path in self.folder.rglob("*.py"):
            name = path.relative_to(self.folder)
            hidden = any(part.startswith(".") for part in name.parts)
            if not hidden:
                names.append(name)
        return digest_of_files(self.folder, names)


def digest_of_files(folder: Path, names: Iterable[Path]) -> str:
    """Return a digest of some files of a folder, in hexadecimal."""
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update(name.as_posix().encode() + b"\0")
        digest.update((folder / name).read_bytes() + b"\0")
    return digest.hexdigest()


def read_run_config(path: Path) -> dict[str, Scalar]:
    """Read a run-config file, as for ``flwr run --run-config``."""
    return flat_settings(_read_toml(path))


def parse_setting(text: str) -> dict[str, Scalar]:
    """Parse one setting of a command line; a value that is not TOML is a string.

    >>> parse_setting("reduction=16") | parse_setting("optimizer-state=fresh")
    {'reduction': 16, 'optimizer-state': 'fresh'}
    """
    key, equals, value = (part.strip() for part in text.partition("="))
    if not key or not equals:
        raise ValueError(f"a setting is key=value, got {text!r}")
    return flat_settings({key: parse_toml_value(value)})


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, RecursionError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as TOML: {error}") from error


def _like(default: Scalar, value: object, what: str) -> Scalar:
    """Return `value` in the default's type, if nothing is lost.

    A float may stand where the default is an integer: the default may be a round number
    by chance.
    """
    with under_key(what):
        check_int64(value)
    wanted = type(default)
    given = type(value)
    if given is wanted or (wanted is int and given is float):
        return value  # type: ignore[return-value]
    if wanted is float and isinstance(value, int) and given is not bool:
        return float(value)
    if wanted is str and given in (int, float, bool):
        return json.dumps(value)
    raise ValueError(f"{what} is {value!r}, wanted {wanted.__name__}, as {default!r}")
