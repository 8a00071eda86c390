"""What a leakage command writes: a table, a page with pictures, and all numbers."""

import io
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

import torch
from torch import Tensor

from flwr_splitfc.leakage.attack import Reconstruction
from flwr_splitfc.leakage.attacker import Attacked, Attacker
from flwr_splitfc.leakage.decoders import is_image
from flwr_splitfc.leakage.label_inference import LabelInference, LabelValues
from flwr_splitfc.leakage.scores import Scores
from flwr_splitfc.leakage.units import has_columns
from flwr_splitfc.run.columns import (
    Column,
    megabytes,
    shown_columns,
    table_text,
    terminal_table,
)
from flwr_splitfc.run.results import results_text, write_whole

_PICTURES = 12
_CAVEAT = (
    "No attack that fails proves safety: another network, more data, or many releases "
    "of the same sample may reveal more."
)
_ABOUT_COLUMNS = (
    "Inputs are no images: each column is taken over its own spread. With an MSE of 1 "
    "a reconstruction is as far off as the columns vary."
)
_ABOUT_DRAWS = (
    "The device half draws random numbers, as dropout does. The attacker knows them: "
    "they follow from the seed that a server gives to a SplitClientApp, and a loop of "
    "one's own is taken to seed torch by it, too. Inversion and nearest tokens go by "
    "them, other attacks do not."
)
_NOT_ATTACKED = (
    "Not attacked: the device half that goes back to the server after each turn, and "
    "its optimizer's state. With the gradients that it sent they can give inputs away, "
    "whatever noise features have: whole, where the first layer is linear and has at "
    "least as many outputs as a turn has samples; tokens, where it is an embedding."
)


@dataclass(frozen=True, eq=False)
class AttackedCodec:
    """What the features of one codec gave away.

    Parameters
    ----------
    name : str
    attacker : Attacker
        Of the run.
    is_own : bool
        Whether the run was made with this codec.
    attacked : Attacked
    """

    name: str
    attacker: Attacker
    is_own: bool
    attacked: Attacked

    @property
    def outcome(self) -> Reconstruction:
        """What the attack came to."""
        return self.attacked.outcome


@dataclass(frozen=True)
class _Row:
    """A line of the table.

    The trivial attack needs no bits, and only the run's own codec led to its accuracy.
    """

    name: str
    bits_per_entry: float | None
    scores: Scores
    attack: str | None = None
    levelled: bool | None = None
    accuracy: float | None = None
    moved_bytes: int | None = None

    @classmethod
    def of(cls, codec: AttackedCodec) -> "_Row":
        outcome, bits, levelled, _ = codec.attacked
        row = cls(codec.name, bits, outcome.scores, outcome.attack, levelled)
        if not codec.is_own:
            return row
        run = codec.attacker.run
        return replace(row, accuracy=run.accuracy, moved_bytes=run.moved_bytes)


def _has(score: str, rows: Sequence[_Row]) -> bool:
    return any(getattr(row.scores, score) is not None for row in rows)


def _any_has(key: str) -> Callable[[Sequence[_Row]], bool]:
    return lambda rows: any(getattr(row, key) is not None for row in rows)


def _score_column(key: str, heading: str, text: str) -> Column[_Row]:
    return Column(
        key,
        heading,
        text.format,
        of=lambda row: getattr(row.scores, key),
        shown=partial(_has, key),
    )


_COLUMNS: list[Column[_Row]] = [
    Column("name", "features as", justify="left"),
    Column("accuracy", "accuracy", "{:.1%}".format, shown=_any_has("accuracy")),
    Column("moved_bytes", "MB", megabytes, shown=_any_has("moved_bytes")),
    Column("bits_per_entry", "bits/entry", "{:.3f}".format),
    Column("attack", "attack", justify="left"),
    _score_column("mse", "MSE", "{:.4f}"),
    _score_column("psnr", "PSNR, dB", "{:.2f}"),
    _score_column("ssim", "SSIM", "{:.3f}"),
    _score_column("recovered", "recovered", "{:.1%}"),
]


@dataclass(frozen=True, eq=False)
class LeakageReport:
    """The outcome of all attacks on some runs of an app.

    Parameters
    ----------
    app : str
        The app's name.
    codecs : sequence of AttackedCodec
        One or more.
    labels : dict of str to LabelInference or LabelValues
        By run, where devices have the labels.
    failures : sequence of str
        What could not be attacked, and why.
    """

    app: str
    codecs: Sequence[AttackedCodec]
    labels: Mapping[str, LabelInference | LabelValues]
    failures: Sequence[str] = ()

    @property
    def attacker(self) -> Attacker:
        """The first run's attacker; the others' have the same settings."""
        return self.codecs[0].attacker

    def write(self, folder: Path) -> None:
        """Write ``index.html`` and ``leakage.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "leakage.json", results_text(self._numbers()))
        write_whole(folder / "index.html", self._page())

    def text(self) -> str:
        """Return the table for a terminal, what was learned of labels, and failures."""
        rows = self._rows()
        table = table_text(terminal_table(shown_columns(_COLUMNS, rows), rows))
        return "\n".join([table, *self._notes()])

    def _rows(self) -> list[_Row]:
        rows = [_Row.of(codec) for codec in self.codecs]
        trivial = self.codecs[0].outcome.trivial
        return [*rows, _Row("no features: the mean input", None, trivial)]

    def _notes(self) -> list[str]:
        """Return what stands below the table."""
        outcome = self.codecs[0].outcome
        part = outcome.part
        notes = [_NOT_ATTACKED]
        if outcome.scores.mse is not None and has_columns(outcome.inputs.shape[1:]):
            notes.append(_ABOUT_COLUMNS)
        if part:
            notes.append(
                f"Inputs are several tensors, of which {part!r} is reconstructed; what "
                "features tell of the others is not measured."
            )
        if self._knows_draws():
            notes.append(_ABOUT_DRAWS)
        for codec, reasons in self._left_out().items():
            for attack, reason in reasons.items():
                notes.append(f"{codec}: {attack} is left out, since {reason}")
        for codec, reason in self._levels_not_known().items():
            notes.append(
                f"{codec}: whether devices levelled features is not known, since "
                f"{reason}. Both were attacked, and the closer one counts"
            )
        return [*notes, *self._about_labels(), *self.failures]

    def _knows_draws(self) -> bool:
        """Tell whether what device halves drew was known in an attack."""
        return any(codec.outcome.knows_draws for codec in self.codecs)

    def _left_out(self) -> dict[str, dict[str, str]]:
        """Return by codec which attacks could not be tried, and why."""
        return {
            codec.name: dict(codec.outcome.left_out)
            for codec in self.codecs
            if codec.outcome.left_out
        }

    def _levels_not_known(self) -> dict[str, str]:
        """Return by codec why it is not known whether devices levelled its features."""
        return {
            codec.name: codec.attacked.not_known
            for codec in self.codecs
            if codec.attacked.not_known
        }

    def _about_labels(self) -> list[str]:
        return [
            f"{run}, labels inferred: {_label_text(found)}"
            for run, found in self.labels.items()
        ]

    def _numbers(self) -> dict[str, object]:
        rows = []
        for row in self._rows():
            rows.append(
                {
                    "codec": row.name,
                    "accuracy": row.accuracy,
                    "moved_bytes": row.moved_bytes,
                    "bits_per_entry": row.bits_per_entry,
                    "attack": row.attack,
                    "levelled": row.levelled,
                    **asdict(row.scores),
                }
            )
        attacker = self.attacker
        outcome = self.codecs[0].outcome
        return {
            "app": self.app,
            "runs": self._run_configs(),
            "auxiliary": attacker.auxiliary,
            "known_devices": attacker.known_devices,
            "attacked_devices": attacker.attacked_devices,
            "known_samples": outcome.known_count,
            "attacked_samples": len(outcome.inputs),
            "attacked_part": outcome.part,
            "attack": asdict(attacker.settings),
            "reconstruction": rows,
            "labels": {run: asdict(found) for run, found in self.labels.items()},
            "failures": list(self.failures),
            "knows_draws": self._knows_draws(),
            "left_out": self._left_out(),
            "levels_not_known": self._levels_not_known(),
        }

    def _run_configs(self) -> dict[str, object]:
        runs = [codec.attacker.run for codec in self.codecs]
        return {str(run.folder): dict(run.config) for run in runs}

    def _page(self) -> str:
        rows = self._rows()
        page = files(__package__).joinpath("leakage.html").read_text()
        # the look of a comparison
        style = files("flwr_splitfc.compare.report").joinpath("page.css").read_text()
        return Template(page).substitute(
            title=escape(f"Leakage on {self.app}"),
            about=escape(self.attacker.about),
            caveat=escape(_CAVEAT),
            style=style,
            table=_table(rows, shown_columns(_COLUMNS, rows)),
            notes="".join(f"<p>{escape(line)}</p>" for line in self._notes()),
            pictures=self._pictures(),
        )

    def _pictures(self) -> str:
        inputs = self.codecs[0].outcome.inputs
        if not inputs.is_floating_point() or not is_image(inputs.shape[1:]):
            return ""
        low, high = inputs.min().item(), inputs.max().item()
        lines = [_pictures_line("the inputs", inputs, low, high)]
        for codec in self.codecs:
            outcome = codec.outcome
            # a codec that does not send every row has other samples
            if not torch.equal(outcome.inputs, inputs):
                inputs = outcome.inputs
                lines.append(_pictures_line("the inputs", inputs, low, high))
            lines.append(_pictures_line(codec.name, outcome.guesses, low, high))
        return f"<h2>Reconstructions</h2>\n<table>{''.join(lines)}</table>"


def _label_text(found: LabelInference | LabelValues) -> str:
    """Write what was inferred: of several attacks the best one first."""
    if isinstance(found, LabelValues):
        return (
            f"by the last layers, R2 {found.r2:.6f} and the largest error "
            f"{found.largest_error:.2g}"
        )
    shares = {
        "by the last layers": found.last_layers,
        "by clusters of gradients": found.clusters,
        "by the nearest known one": found.nearest,
        "by their signs": found.sign,
        "by the model's own answer": found.answer,
    }
    tried = {how: share for how, share in shares.items() if share is not None}
    best_first = sorted(tried, key=lambda how: -tried[how])
    ways = ", ".join(f"{tried[how]:.1%} {how}" for how in best_first)
    return f"{ways}; {found.majority:.1%} by always guessing the commonest"


def _table(rows: Sequence[_Row], columns: Sequence[Column[_Row]]) -> str:
    headings = [f"<th scope='col'>{escape(column.heading)}</th>" for column in columns]
    lines = []
    for row in rows:
        cells = [f"<td>{escape(column.text(row))}</td>" for column in columns]
        lines.append(f"<tr>{''.join(cells)}</tr>\n")
    head = f"<thead><tr>{''.join(headings)}</tr></thead>"
    return f"<div class='scroll'><table>{head}\n{''.join(lines)}</table></div>"


def _pictures_line(name: str, images: Tensor, low: float, high: float) -> str:
    cells = []
    for image in images[:_PICTURES]:
        shown = (image - low) / max(high - low, 1e-12)
        png = b64encode(_png(shown.clamp(0, 1))).decode()
        source = f"data:image/png;base64,{png}"
        cells.append(f"<td><img alt='{escape(name)}' src='{source}'></td>")
    return f"<tr><td>{escape(name)}</td>{''.join(cells)}</tr>\n"


def _png(image: Tensor) -> bytes:
    """Return an image (C, H, W) between 0 and 1 as a file: in colour if C is 3."""
    # here, since it takes a while to import
    from matplotlib.image import imsave

    in_colour = len(image) == 3
    pixels = image if in_colour else image[:1].expand(3, -1, -1)
    file = io.BytesIO()
    imsave(file, pixels.permute(1, 2, 0).contiguous().numpy(), format="png")
    return file.getvalue()
