"""The lesson, revisited: `docs/lesson6.ipynb` runs offline and says what `docs/lesson6.md` shows."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest
from nbconvert import MarkdownExporter

DOCS = Path(__file__).parents[3] / "docs"
NOTEBOOK = DOCS / "lesson6.ipynb"
# What depends on the machine, digits of a difference that is rounding, and how torch prints a BatchNorm.
VARIES = re.compile(r"\de-0\d|\d+\.\d{3,}|object at 0x\w+|affine=True(, bias=True)?")


def texts(notebook: Any) -> list[str]:
    """What every cell printed or returned, without what varies."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            text = output.get("text") or output.get("data", {}).get("text/plain", "")
            found.append(VARIES.sub("~", text))
    return found


@pytest.fixture(scope="module")
def committed() -> Any:
    return nbformat.read(NOTEBOOK, 4)


def test_the_notebook_runs_offline_and_says_what_it_said(
    committed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CAMKIT_PETS", "CAMKIT_PHOTO"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # where fastai would keep the pets
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    fresh = nbformat.read(NOTEBOOK, 4)
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(fresh, timeout=300, resources=where, coalesce_streams=True).execute()
    assert texts(fresh) == texts(committed)


def test_the_page_is_made_from_the_notebook(committed: Any) -> None:
    body, resources = MarkdownExporter().from_notebook_node(
        committed, {"unique_key": "lesson6", "output_files_dir": "lesson6_files"}
    )
    page = (DOCS / "lesson6.md").read_text(encoding="utf-8")
    assert body.strip() == page.strip()
    assert {DOCS / name for name in resources["outputs"]} == set((DOCS / "lesson6_files").iterdir())


def test_the_lessons_numbers_are_there(committed: Any) -> None:
    said = "\n".join(texts(committed))
    for number in ("torch.Size([1, 3, 352, 352])", "21,831,050", "(21831599, 21831050)", "[1, 512, 7, 7]"):
        assert number in said
