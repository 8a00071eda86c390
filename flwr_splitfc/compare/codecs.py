"""The command that lists the codecs of the catalogue."""

import argparse
from collections.abc import Mapping

from rich.console import Console

from flwr_splitfc.codec import CodecEntry, codec_table
from flwr_splitfc.codec.cut import shared_settings
from flwr_splitfc.run.columns import Column, table_text, terminal_table
from flwr_splitfc.settings import Scalar, key_of


def _selector(entry: CodecEntry) -> str:
    return entry.selector.__name__


def _quantiser(entry: CodecEntry) -> str:
    return entry.quantiser.__name__


def _settings(entry: CodecEntry) -> dict[str, Scalar | None]:
    """Return the settings that not every codec has, or not with this default."""
    shared = _shared_settings().items()
    return {
        name: default
        for name, default in entry.settings.items()
        if (name, default) not in shared
    }


def _shared_settings() -> dict[str, Scalar | None]:
    shared = shared_settings()
    del shared["quality"]  # some have none
    return shared


def settings_text(settings: Mapping[str, Scalar | None]) -> str:
    """Write settings with their defaults as a run-config has them.

    >>> settings_text({"evaluation": "float16", "evaluation_bits": None})
    'evaluation=float16 evaluation-bits'
    """
    texts = []
    for name, default in settings.items():
        key = key_of(name)
        texts.append(key if default is None else f"{key}={default}")
    return " ".join(texts)


def _plain(docstring: str) -> str:
    return docstring.replace("``", "")


CODEC_COLUMNS: list[Column[CodecEntry]] = [
    Column("name", "codec", justify="left"),
    Column("selector", "selector", of=_selector, justify="left"),
    Column("quantiser", "quantiser", of=_quantiser, justify="left"),
    Column(
        "settings", "settings", settings_text, of=_settings, justify="left", wraps=True
    ),
    Column("summary", "what it does", _plain, justify="left", wraps=True),
]


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``codecs`` to the subcommands."""
    parser = commands.add_parser(
        "codecs",
        help="list the codecs of the catalogue",
        description="List the codecs that can be used at the cut, by their names.",
    )
    parser.set_defaults(command=main)


def main(options: argparse.Namespace) -> int:
    """Print the table of codecs, and return the exit status."""
    entries = codec_table()
    table = terminal_table(CODEC_COLUMNS, entries, padding=(0, 2, 0, 0), pad_edge=False)
    console = Console()
    out = console.file  # a dummy where the shell has closed stdout, and Python has none
    if out.isatty():
        console.print(table)
    else:
        out.write(f"{table_text(table)}\n")  # whole lines for a pipe or a file
    shared = settings_text(_shared_settings())
    out.write(f"\nAll have also, unless their line says otherwise: {shared}\n")
    return 0
