"""The keys of a Flower app's run-config, and an app with further ones.

Flower refuses a run-config with a key that the app's ``pyproject.toml`` does not list.
"""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import ZipFile

from flwr_splitfc.settings import RunConfig, Scalar

_HEADING = "[tool.flwr.app.config]"
_HEADING_LINE = re.compile(r"^[ \t]*\[tool\.flwr\.app\.config\].*$", re.MULTILINE)


def flat_settings(table: Mapping[str, Any], prefix: str = "") -> dict[str, Scalar]:
    """Put nested tables under dotted keys, as Flower does.

    >>> flat_settings({"seed": 0, "model": {"width": 8}})
    {'seed': 0, 'model.width': 8}
    """
    flat: dict[str, Scalar] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= flat_settings(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def settings_text(settings: RunConfig) -> str:
    """Write settings as TOML, a line for each."""
    return "".join(f"{key} = {_toml(value)}\n" for key, value in settings.items())


def _toml(value: Scalar) -> str:
    if isinstance(value, float):
        return repr(value)  # inf and nan, too, for which JSON has other words
    # TOML takes JSON's strings, but no surrogates and no bare DEL
    return json.dumps(value, ensure_ascii=False).replace("\x7f", r"\u007f")


def commands_env() -> dict[str, str]:
    """Return this process' environment, with this Python's commands first on the PATH.

    ``flwr`` is one of them, and starts others by the PATH.
    """
    folder = str(Path(sys.executable).parent)
    path = os.environ.get("PATH", os.defpath)
    return {**os.environ, "PATH": folder + os.pathsep + path}


def check_dataset(app: Path, config: RunConfig) -> None:
    """Refuse a run-config out of a file whose data set is code of somebody's choice.

    A dotted ``dataset`` is imported, and may be any module. The user's own app may name
    it, and torchvision's are known.

    Raises
    ------
    ValueError
    """
    dataset = str(config.get("dataset", ""))
    module, _, _ = dataset.rpartition(".")
    if module in ("", "torchvision.datasets"):
        return
    path = app / "pyproject.toml"
    if _listed(_read(path), path).get("dataset") != dataset:
        raise ValueError(
            f"the run's dataset is {dataset!r}, which is imported as code: if you "
            f"trust it, name it as the dataset in {path}"
        )


@contextmanager
def app_with_keys(app: Path, settings: RunConfig) -> Iterator[Path]:
    """Give, for the block, an app that lists all keys of some settings.

    It is the app itself or, where keys are missing, a copy of what Flower takes of it,
    with these settings as their defaults.

    Raises
    ------
    ValueError
        If there is no app, or the keys cannot be added to it.
    """
    path = app / "pyproject.toml"
    listed = _listed(_read(path), path)
    missing = {key: value for key, value in settings.items() if key not in listed}
    if not missing:
        yield app
        return
    with TemporaryDirectory() as folder:
        copy = Path(folder) / "app"
        _copy(app, copy)
        copied = copy / "pyproject.toml"
        text = _extended(copied.read_text("utf-8"), settings_text(missing))
        _check_listed(text, missing, path)
        copied.write_text(text, "utf-8")
        yield copy


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _listed(pyproject: str, path: Path) -> dict[str, Scalar]:
    """Return the run-config that the text of an app's ``pyproject.toml`` lists."""
    try:
        app = tomllib.loads(pyproject)["tool"]["flwr"]["app"]
    except (KeyError, RecursionError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{path} describes no Flower app: {error}") from error
    return flat_settings(app.get("config", {}))


def _copy(app: Path, copy: Path) -> None:
    """Unpack what ``flwr build`` makes of an app: it alone knows which files count."""
    with TemporaryDirectory() as folder:
        built = subprocess.run(
            ["flwr", "build", "--app", str(app.resolve())],
            cwd=folder,
            env=commands_env(),
            capture_output=True,
            text=True,
            check=False,
        )
        bundles = list(Path(folder).glob("*.fab"))
        if not bundles:
            raise ValueError(f"flwr build fails: {built.stdout}{built.stderr}")
        with ZipFile(bundles[0]) as bundle:
            bundle.extractall(copy)


def _extended(pyproject: str, lines: str) -> str:
    """Put lines into the table of the app's run-config."""
    heading = _HEADING_LINE.search(pyproject)
    if heading is None:
        return f"{pyproject}\n{_HEADING}\n{lines}"
    end = heading.end()
    return f"{pyproject[:end]}\n{lines}{pyproject[end:]}"


def _check_listed(text: str, missing: RunConfig, path: Path) -> None:
    """Refuse a text that has not come to list all keys, as one with odd tables."""
    try:
        listed = _listed(text, path)
        # as text: NaN equals no NaN
        complete = all(
            key in listed and _toml(listed[key]) == _toml(value)
            for key, value in missing.items()
        )
    except ValueError:
        complete = False
    if not complete:
        names = ", ".join(missing)
        raise ValueError(f"{path} does not list {names}: add these below {_HEADING}")
