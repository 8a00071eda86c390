"""The Flower app whose runs are compared: its settings, its components, its files."""

import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr_splitfc.settings import Scalar, check_scalar, parse_toml_value

Settings = dict[str, Scalar]


class SettingsError(ValueError):
    """A setting or a file of them that cannot be used; the message names both."""


@dataclass(frozen=True)
class FlowerApp:
    """A Flower app's folder, and what its ``pyproject.toml`` says."""

    folder: Path
    server_app: str
    client_app: str
    defaults: Settings

    @classmethod
    def load(cls, folder: Path) -> "FlowerApp":
        """Read ``[tool.flwr.app]``.

        Raises
        ------
        SettingsError
            If the folder holds no Flower app, or one whose run-config has no
            ``results-dir``.
        """
        path = folder.resolve() / "pyproject.toml"
        try:
            app = _toml(path)["tool"]["flwr"]["app"]
            components, defaults = app["components"], _flat(app["config"])
            loaded = cls(
                path.parent, components["serverapp"], components["clientapp"], defaults
            )
        except KeyError as error:
            raise SettingsError(
                f"{path} describes no Flower app: it has no {error} of [tool.flwr.app]"
            ) from error
        if "results-dir" not in defaults:
            raise SettingsError(
                f"{path} has no results-dir in [tool.flwr.app.config]: the app must write there"
            )
        return loaded

    def settings(self, *layers: tuple[str, Mapping[str, Any]]) -> Settings:
        """The complete run-config: the app's defaults, and over them each layer, a (source, settings) pair.

        Raises
        ------
        SettingsError
            If a layer has a key that the app does not have, or a value of another type;
            Flower itself does not say which key it was, nor where it came from.
        """
        merged = dict(self.defaults)
        for source, layer in layers:
            for key, value in layer.items():
                if key not in merged:
                    known = ", ".join(sorted(merged))
                    raise SettingsError(
                        f"{source}: the app in {self.folder} has no setting {key!r}; it has {known}"
                    )
                merged[key] = _like(self.defaults[key], value, f"{source}: {key}")
        return merged

    def fingerprint(self) -> str:
        """A digest of the app's Python files, in hexadecimal."""
        names = (path.relative_to(self.folder) for path in self.folder.rglob("*.py"))
        return digest_of(
            self.folder,
            (
                name
                for name in names
                if not any(part.startswith(".") for part in name.parts)
            ),
        )


def digest_of(folder: Path, names: Iterable[Path]) -> str:
    """A digest of files in a folder, in hexadecimal."""
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update(
            f"{name.as_posix()}\0".encode() + (folder / name).read_bytes() + b"\0"
        )
    return digest.hexdigest()


def read_settings(path: Path) -> Settings:
    """The settings of a run-config file, as for ``flwr run --run-config``."""
    return _flat(_toml(path))


def parse_setting(text: str) -> Settings:
    """One setting as on a command line; a value that is not TOML is a string.

    >>> parse_setting("reduction=16") | parse_setting("optimizer-state=fresh")
    {'reduction': 16, 'optimizer-state': 'fresh'}
    """
    key, equals, value = (part.strip() for part in text.partition("="))
    if not key or not equals:
        raise SettingsError(f"a setting is key=value, got {text!r}")
    return _flat({key: parse_toml_value(value)})


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{path} cannot be read as TOML: {error}") from error


def _flat(table: Mapping[str, Any], prefix: str = "") -> Settings:
    """Nested tables under dotted keys, as Flower has them."""
    flat: Settings = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _like(default: Scalar, value: object, what: str) -> Scalar:
    """Return `value` in the default's type, or a float where the default is an int."""
    if type(default) is int and type(value) is float:
        return value
    if type(default) is str and type(value) in (int, float, bool):
        return json.dumps(value)
    try:
        checked: Scalar = check_scalar(what, value, type(default))
    except ValueError as error:
        raise SettingsError(f"{error}, as {default!r}") from None
    return checked
