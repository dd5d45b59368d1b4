"""A scoreboard for `docs/scoreboard.md`: its document with the samples behind it, and its tables.

BOARD is a folder of `camkit bench scoreboard`. Writes the document with the values of all cells, and puts
the tables into the page.

    python -m benchmarks.scoreboard BOARD [--out FILE.json] [--page PAGE.md]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from camkit.bench import scoreboard_page, scoreboard_table
from camkit.bench.scoreboard_plan import CELLS
from camkit.bench.scoreboard_table import Board
from camkit.bench.typed_json import finite, mapped

RESULTS = Path("benchmarks/results/scoreboard.json")
PAGE = Path("docs/scoreboard.md")
NAME = "scoreboard"


def main() -> None:
    """Read, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("board", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    args = parser.parse_args()
    from benchmarks.page import into

    found = json.loads((args.board / scoreboard_page.JSON).read_text("utf-8"))
    found["samples"] = [sample(path) for path in sorted((args.board / CELLS).glob("*.json"))]
    args.out.write_text(json.dumps(found) + "\n")
    args.page.write_text(into(args.page.read_text("utf-8"), NAME, text(found)), "utf-8")


def sample(path: Path) -> dict[str, Any]:
    """What was measured in a cell."""
    cell = json.loads(path.read_text("utf-8"))
    request = cell["request"]
    same = ("model", "backend", "method", "group", "photographs", "seed")
    scores = {name: rounded(score["values"]) for name, score in cell["scores"].items()}
    return {name: request[name] for name in same} | {"scores": scores, "cost": cell["cost"]}


def rounded(values: Iterable[float | None]) -> list[float | None]:
    """To four digits."""
    return [None if value is None else float(f"{value:.4g}") for value in values]


def text(found: Any) -> str:
    """What stands between the marks of the page."""
    board = mapped(scoreboard_table.read(found), finite)
    told = f"`{board.command}`; samples: `{RESULTS.as_posix()}`."
    return f"{told}\n\n{report(board)}"


def report(board: Board) -> str:
    """Markdown: what was found, the tables of all models together and of each, what they mean."""
    parts = [f"**{scoreboard_page.headline(board)}.**", *scoreboard_page.words(board)]
    parts += list(scoreboard_page.missing(board))
    parts.append(_table(scoreboard_page.SUMMARY_HEADERS, scoreboard_page.summary_rows(board)))
    for model in dict.fromkeys(line.model for line in board.lines):
        headers, rows = scoreboard_page.table([line for line in board.lines if line.model == model])
        parts += [f"`{model}`: {scoreboard_page.photographs(board, model)}", _table(headers, rows)]
    return "\n\n".join([*parts, *scoreboard_page.explanation(board)])


def _table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (headers, ["---"] * len(headers), *rows))


if __name__ == "__main__":
    main()
