"""`index.html` of a training: how it learnt, what it takes for what, where it looked when wrong."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from camkit.contracts.trainer import TrainResult
from camkit.drawing.thumbnail import thumbnail
from camkit.errors import printable
from camkit.pages import page
from camkit.pages.charts import STEPS, Cell, Chart, Matrix, chart

if TYPE_CHECKING:
    from camkit.drawing.sheet import Panel

SIDE = 448  # pixels of a photograph
PAIRS = 12  # of classes that are mistaken; all are in confused.csv
MOST = 40  # classes in the matrix; more are in confusion.png
GONE = (
    "There were no held-out photographs to judge when this page was made, so it does not tell what the "
    "model takes for what."
)
# Curves by what they are called, with the part of a result that they are of and the axis below.
CURVES: Sequence[tuple[str, str, str, Mapping[str, str]]] = (
    ("Loss", "history", "epoch", {"training": "train_loss", "held out": "valid_loss"}),
    (
        *("Held-out photographs", "history", "epoch"),
        {"error": "error_rate", "mean average precision": "mean_average_precision", "F1": "f1"},
    ),
    ("Loss of each step", "steps", "step", {"loss": "loss"}),
    ("Learning rate", "steps", "step", {"learning rate": "lr"}),
)


def text(
    result: TrainResult,
    lines: Sequence[str],
    panels: Sequence[Panel] = (),
    caption: str = "",
    classes: Sequence[Mapping[str, object]] = (),
    pairs: Sequence[tuple[str, str, int]] = (),
    confusion: tuple[Tensor, Sequence[str]] | None = None,
) -> Iterator[str]:
    """The page, piece by piece.

    lines: the report in words. panels: the photographs judged worst, with their caption. classes: a row of
    figures for each. pairs: actual and predicted class and how often. confusion: counts and their classes.
    """
    return page.render(
        "training.html",
        headline=printable(lines[0].capitalize()) if lines else "Training",
        told=[printable(line) for line in result.told],
        missing=[] if result.validation else [GONE],
        charts=_charts(result),
        worst=[
            {"picture": thumbnail(panel.image, side=SIDE), "lines": panel.title.split("\n")}
            for panel in panels
        ],
        worst_words=caption,
        pairs=[(printable(actual), printable(said), number) for actual, said, number in pairs[:PAIRS]],
        more_pairs=max(0, len(pairs) - PAIRS),
        confusion=_matrix(*confusion, len(classes)) if confusion and pairs else None,
        columns=[name.replace("_", " ") for name in classes[0]] if classes else [],
        classes=[[_shown(value) for value in row.values()] for row in classes],
    )


def _charts(result: TrainResult) -> list[Chart]:
    made = []
    for title, part, below, names in CURVES:
        records: Sequence[Mapping[str, float]] = getattr(result, part)
        curves = {
            name: [(n, float(record[key])) for n, record in enumerate(records, 1) if key in record]
            for name, key in names.items()
        }
        made.append(chart(title, below, curves))
    return [one for one in made if one is not None]


def _matrix(counts: Tensor, names: Sequence[str], total: int) -> Matrix:
    """Counts of some of `total` classes."""
    most = max(1, int(counts.max()))
    some = f": the {len(names)} of {total} that are mistaken most often" if total > len(names) else ""
    cells = [
        [
            Cell(str(count or ""), math.ceil(STEPS * count / most), row == column)
            for column, count in enumerate(values)
        ]
        for row, values in enumerate(counts.tolist())
    ]
    title = f"Actual classes in rows, predicted in columns{some}"
    return Matrix(title, [printable(name) for name in names], cells)


def _shown(value: object) -> str:
    return f"{value:.1%}" if isinstance(value, float) else printable(str(value))
