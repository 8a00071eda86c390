"""Every module that the package imports belongs to a dependency that pyproject.toml declares."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "flwr_splitfc"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# What a folder may import on top, by the extra that installs it.
EXTRAS = {
    "compare": PACKAGE / "compare",
    "leakage": PACKAGE / "leakage",
    "privacy": PACKAGE / "defence",
}


def names(requirements: list[str]) -> set[str]:
    """Names of distributions, as in ``flwr[simulation]>=1.41``."""
    found = (re.match(r"[\w.-]+", requirement) for requirement in requirements)
    return {match[0].lower() for match in found if match}


def imported(file: Path) -> set[str]:
    """Top-level modules, those imported inside functions included."""
    modules = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            modules.add(node.module)
    return {module.split(".")[0] for module in modules}


def allowed(file: Path) -> set[str]:
    """Distributions that a file of the package may import."""
    found = names(PROJECT["dependencies"])
    for extra, folder in EXTRAS.items():
        if folder in file.parents:
            found |= names(PROJECT["optional-dependencies"][extra])
    return found


def test_every_import_is_a_declared_dependency() -> None:
    distributions = packages_distributions()
    undeclared = []
    for file in PACKAGE.rglob("*.py"):
        others = imported(file) - set(sys.stdlib_module_names) - {"flwr_splitfc"}
        for module in sorted(others):
            owners = {name.lower() for name in distributions.get(module, [])}
            if not owners & allowed(file):
                undeclared.append(f"{file.relative_to(ROOT)} imports {module}")
    assert undeclared == []


def test_every_declared_dependency_is_imported() -> None:
    distributions = packages_distributions()
    modules = set().union(*(imported(file) for file in PACKAGE.rglob("*.py")))
    owners = {
        name.lower() for module in modules for name in distributions.get(module, [])
    }
    assert names(PROJECT["dependencies"]) <= owners
