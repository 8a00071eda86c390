"""Compiled loops give the bytes of the Python code, wherever machine code can be kept."""

from __future__ import annotations

import importlib
import os
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from numba.core.dispatcher import Dispatcher

import flwr_splitfc
from flwr_splitfc.codec import cut_codec

PACKAGE = Path(flwr_splitfc.__file__).parent

ENCODE = """
import torch
from flwr_splitfc.codec import cut_codec
features = torch.linspace(-1, 2, 600).reshape(20, 30) ** 3
array, _ = cut_codec("quant-only", uplink_bits=2.0).encode_features(features)
print(array.data.hex())
"""

LOOP = """
from compiled import compiled

@compiled
def loop(count: int) -> float:
    total = 0.0
    for number in range(count):
        total += number
    return total

print(loop(5), len(loop.signatures))
"""


FULL = """
import logging, resource, sys
logging.basicConfig(stream=sys.stdout, format="%(message)s")
from compiled import compiled

@compiled
def halved(number: int) -> float:
    return number / 2

@compiled
def tripled(number: int) -> float:
    return 3 * halved(number)

resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # as a quota, or a full disk
print(tripled(4), tripled(5))
"""

DAMAGED = """
import logging, sys
logging.basicConfig(stream=sys.stdout, format="%(message)s")
from compiled import compiled

@compiled
def empty_index(number: int) -> int:
    return number + 1

@compiled
def short_index(number: int) -> int:
    return number + 2

@compiled
def empty_code(number: int) -> int:
    return number + 3

@compiled
def short_code(number: int) -> int:
    return number + 4

@compiled
def folder(number: int) -> int:
    return number + 5

loops = empty_index, short_index, empty_code, short_code, folder
print([loop(10) for loop in loops])
print([loop.stats.cache_hits.total() for loop in loops])
"""


def encoded() -> str:
    features = torch.linspace(-1, 2, 600).reshape(20, 30) ** 3
    array, _ = cut_codec("quant-only", uplink_bits=2.0).encode_features(features)
    return array.data.hex()


def printed(code: str, folder: Path, **environment: str) -> str:
    """The line that a process prints whose modules are in a folder."""
    script = folder / "script.py"
    script.write_text(code)
    run = subprocess.run(
        [sys.executable, script],
        env={**os.environ, "PYTHONPATH": str(folder), **environment},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def printed_without_a_cache(code: str, folder: Path) -> str:
    """Where numba would make a folder there are files, which stop root, too."""
    folders = [path for path in folder.rglob("*") if path.is_dir()]
    for place in (folder, *folders):
        (place / "__pycache__").touch()
    file = folder / "__pycache__"
    return printed(
        code,
        folder,
        HOME=f"{file}/home",
        NUMBA_CACHE_DIR=f"{file}/numba",
        XDG_CACHE_HOME=f"{file}/cache",
    )


def test_a_loop_is_compiled_where_no_folder_can_be_written(tmp_path: Path) -> None:
    shutil.copy(PACKAGE / "codec" / "compiled.py", tmp_path)
    assert printed_without_a_cache(LOOP, tmp_path) == "10.0 1"


def test_a_loop_is_compiled_where_the_disk_is_full_which_is_said_once(
    tmp_path: Path,
) -> None:
    shutil.copy(PACKAGE / "codec" / "compiled.py", tmp_path)
    kept = tmp_path / "kept"
    warning, result = printed(FULL, tmp_path, NUMBA_CACHE_DIR=str(kept)).splitlines()
    assert f"cannot be kept in {kept}" in warning
    assert result == "6.0 7.5"


def test_damaged_machine_code_is_compiled_and_kept_anew_which_is_said_once(
    tmp_path: Path,
) -> None:
    shutil.copy(PACKAGE / "codec" / "compiled.py", tmp_path)
    kept = tmp_path / "kept"

    def lines() -> list[str]:
        return printed(DAMAGED, tmp_path, NUMBA_CACHE_DIR=str(kept)).splitlines()

    results = "[11, 12, 13, 14, 15]"
    assert lines() == [results, "[0, 0, 0, 0, 0]"]
    damage(kept)
    unread, unkept, *found = lines()
    assert f"cannot be read in {kept}" in unread
    assert f"cannot be kept in {kept}" in unkept  # a folder is left as it is
    assert found == [results, "[0, 0, 0, 0, 0]"]
    assert lines()[2:] == [results, "[1, 1, 1, 1, 0]"]


def damage(kept: Path) -> None:
    """As a power loss leaves files: empty, or without their last bytes."""
    for function, suffix, part in (
        ("empty_index", "nbi", 0.0),
        ("short_index", "nbi", 0.9),
        ("empty_code", "nbc", 0.0),
        ("short_code", "nbc", 0.9),
    ):
        (file,) = kept.rglob(f"*.{function}-*.{suffix}")
        os.truncate(file, int(part * file.stat().st_size))
    (index,) = kept.rglob("*.folder-*.nbi")
    index.unlink()
    index.mkdir()


@pytest.mark.extended
def test_the_package_encodes_where_no_folder_can_be_written(tmp_path: Path) -> None:
    package = tmp_path / "flwr_splitfc"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    assert printed_without_a_cache(ENCODE, tmp_path) == encoded()


def test_without_the_compiler_the_bytes_are_the_same(tmp_path: Path) -> None:
    root = PACKAGE.parent
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    assert (
        printed(ENCODE, tmp_path, PYTHONPATH=path, NUMBA_DISABLE_JIT="1") == encoded()
    )


@pytest.mark.extended
def test_no_loop_leaves_its_arrays_whatever_the_bytes() -> None:
    """As Python a loop raises an error for an index that machine code would follow."""
    tests = str(Path(__file__).parent / "test_hostile_bytes.py")
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider"]
    # the payloads whose memory is measured are those of another test
    run = subprocess.run(
        [*command, "-k", "not test_memory_is_bounded", tests],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout


def codec_modules() -> list[ModuleType]:
    folder = str(PACKAGE / "codec")
    found = pkgutil.walk_packages([folder], "flwr_splitfc.codec.")
    return [importlib.import_module(module.name) for module in found]


def test_compiled_functions_call_those_of_their_own_file_alone() -> None:
    """numba keeps a caller's code, with what it calls, until the caller's file changes."""
    loops = 0
    for module in codec_modules():
        for value in vars(module).values():
            if not isinstance(value, Dispatcher) or value.__module__ != module.__name__:
                continue
            loops += 1
            for name in value.py_func.__code__.co_names:
                called = getattr(module, name, None)
                if isinstance(called, Dispatcher):
                    assert called.__module__ == module.__name__, f"{value} and {called}"
    assert loops > 0
