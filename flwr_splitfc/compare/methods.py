"""The methods that a comparison compares: run-config files, and codecs by name."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from flwr_splitfc.codec import codec_names
from flwr_splitfc.compare.flower_app import Layer

# A codec by its name alone is trained with devices in turn, as most of the shelf is.
_STRATEGY_OF_CODECS = "split-learning"


@dataclass(frozen=True)
class Method:
    """One method of a comparison.

    Parameters
    ----------
    name : str
        Its name in the table.
    layer : Layer
        What it sets in the app's run-config.
    """

    name: str
    layer: Layer

    @classmethod
    def from_file(cls, path: Path) -> "Method":
        """Read a method from its run-config file, whose name it has."""
        return cls(path.stem, Layer.from_file(path))

    @classmethod
    def from_codec(cls, name: str) -> "Method":
        """Make split learning with a codec; other settings stay the app's."""
        settings = {"strategy": _STRATEGY_OF_CODECS, "codec": name}
        return cls(name, Layer(f"codec {name}", settings))

    @property
    def codec_candidates(self) -> set[object]:
        """All names among which that of its codec is, if it has one."""
        settings = self.layer.settings
        return {self.name, settings.get("codec"), settings.get("strategy")}


def method_of(text: str) -> Method:
    """Return the method that a person names: a run-config file, or else a codec.

    Raises
    ------
    ValueError
        If it is neither, or the file cannot be read.
    """
    path = Path(text)
    if text in codec_names() and not path.is_file():
        return Method.from_codec(text)
    if not path.suffix and not path.is_file():
        raise ValueError(
            f"{text} is no run-config file and no codec; `flwr-splitfc codecs` "
            "lists the codecs"
        )
    return Method.from_file(path)


def methods_on_shelf(shelf: Path, named: Sequence[Method] = ()) -> list[Method]:
    """Return the methods of a folder's files, and all codecs that have none there.

    Parameters
    ----------
    shelf : Path
        The folder.
    named : sequence of Method
        Methods that are there already: neither they nor their codecs come again.
    """
    sources = [method.layer.source for method in named]
    paths = [path for path in sorted(shelf.glob("*.toml")) if str(path) not in sources]
    methods = [Method.from_file(path) for path in paths]
    there: set[object] = set()
    for method in [*named, *methods]:
        there |= method.codec_candidates
    missing = [name for name in codec_names() if name not in there]
    return methods + [Method.from_codec(name) for name in missing]


def check_names(methods: Iterable[Method]) -> None:
    """Raise a `ValueError` if two methods have one name."""
    by_name: dict[str, Method] = {}
    for method in methods:
        first = by_name.setdefault(method.name, method)
        if first.layer.settings != method.layer.settings:
            raise ValueError(
                f"{first.layer.source} and {method.layer.source} have one name, "
                "which is the method's in the table"
            )
