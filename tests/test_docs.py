"""The documentation says what the code does."""

from __future__ import annotations

import importlib
import json
import re
import tomllib
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from PIL import Image

from camkit import Query, errors
from camkit.cli.explain import explain
from camkit.cli.scoreboard import scoreboard
from camkit.explaining.manifest import FIELDS
from camkit.images.decoding import sample
from camkit.registry import discovery, loading
from camkit.registry.extras import EXTRAS
from camkit.testing import CHECKS, Subject, reference_inputs, reference_model, run_check

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    photo = Image.open(sample())
    for name in ("cat.jpg", "a.jpg", "b.jpg"):
        photo.save(name)
    monkeypatch.setattr(Image.Image, "show", lambda self: None)
    space: dict[str, Any] = {
        "module": torchvision.models.resnet18(weights=None).eval(),
        "inputs": torch.randn(2, 3, 64, 64),
        "targets": [3, 5],
    }
    blocks = re.findall(r"```python\n(.*?)```", text("README.md"), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, space)
    assert space["maps"].shape == (2, 1000, 2, 2)


def test_the_reference_says_what_each_dependency_is_for() -> None:
    project = tomllib.loads(text("pyproject.toml"))["project"]
    extras = (project["optional-dependencies"][name] for name in EXTRAS)
    needed = {re.split("[<>=]", one)[0] for one in (*project["dependencies"], *chain(*extras))}
    table = text("docs/reference.md").partition("\n## Dependencies\n")[2].partition("\n## ")[0]
    cells = [row.split("|")[1] for row in table.splitlines() if row.startswith("| ")][1:]
    assert {name for cell in cells for name in re.split(r"[, ]+", cell.partition("(")[0]) if name} == needed


@pytest.fixture
def benchmarks() -> Any:
    """The scripts behind the page, which import what they compare with."""
    for peer in ("captum", "pytorch_grad_cam", "torchcam"):
        pytest.importorskip(peer)
    return importlib.import_module("benchmarks.page")


def test_every_table_of_the_benchmarks_is_that_of_its_samples(benchmarks: Any) -> None:
    page = text("docs/benchmarks.md")
    for name, block in benchmarks.BLOCKS.items():
        first, last = benchmarks.marks(name)
        told = benchmarks.text(name, ROOT / benchmarks.RESULTS)
        assert f"{first}\n{told}\n\n{last}" in page, (
            f"python -m benchmarks.page: {name} is of other samples"
        )
        script = block.command.split()[2]
        assert (ROOT / f"{script.replace('.', '/')}.py").is_file(), "the command is one"
        measured = (ROOT / benchmarks.RESULTS / block.file).exists()
        assert measured == (block.file in told), "samples are named where there are some"


def test_no_figure_of_the_benchmarks_is_without_samples(benchmarks: Any) -> None:
    rest = text("docs/benchmarks.md")
    for name in benchmarks.BLOCKS:
        first, last = benchmarks.marks(name)
        before, _, inside = rest.partition(first)
        rest = before + inside.partition(last)[2]
    assert [line for line in rest.splitlines() if line.startswith("|")] == []
    figure = r"\d+\.\d+|\d[\d,]* ?(?:ms|s|seconds|MiB|KiB|times|forwards)\b"
    assert re.findall(figure, rest) == [], "a figure outside of the tables has no samples"
    assert re.findall(figure, "2.96, 44 ms, 1,003 MiB, 20 times") == [
        "2.96",
        "44 ms",
        "1,003 MiB",
        "20 times",
    ]


def test_a_page_without_a_place_for_a_table_is_refused(benchmarks: Any) -> None:
    page = "before <!-- road -->\nold\n<!-- end of road -->\nafter"
    written = benchmarks.into(page, "road", "new")
    assert written == "before <!-- road -->\n\nnew\n\n<!-- end of road -->\nafter"
    assert benchmarks.into(written, "road", "new") == written
    for broken in ("nothing", page.replace("end of", "")):
        with pytest.raises(SystemExit, match="<!-- road -->"):
            benchmarks.into(broken, "road", "new")


def test_what_was_not_measured_is_said(benchmarks: Any, tmp_path: Path) -> None:
    assert benchmarks.text("road", tmp_path) == "`python -m benchmarks.road`: not measured."


def test_the_tables_of_the_scoreboard_are_those_of_its_document() -> None:
    script = importlib.import_module("benchmarks.scoreboard")
    told = script.text(json.loads(text(script.RESULTS.as_posix())))
    marks = "<!-- scoreboard -->\n", "<!-- end of scoreboard -->\n"
    assert f"{marks[0]}\n{told}\n\n{marks[1]}" in text(script.PAGE.as_posix())


def test_every_option_of_the_scoreboard_is_in_the_reference() -> None:
    page = text("docs/reference.md").partition("### `camkit bench scoreboard`")[2].partition("\n## ")[0]
    names = [opt for p in scoreboard.params for opt in p.opts if opt.startswith("--")]
    assert len(names) > 10
    assert [name for name in names if f"`{name}" not in page and name not in ("--option", "--debug")] == []


def test_quoted_files_are_the_files() -> None:
    page = text("docs/plugins.md")
    quotes = re.findall(r"<!-- quote: (\S+) -->\n```python\n(.*?)```", page, re.DOTALL)
    assert quotes
    for name, quoted in quotes:
        assert quoted == text(name), f"docs/plugins.md quotes an older {name}"


def test_the_explainer_of_the_guide_is_right() -> None:
    (block,) = re.findall(r"```python\n([^`]*?class MyCam.*?)```", text("docs/plugins.md"), re.DOTALL)
    space: dict[str, Any] = {}
    exec(block, space)
    subject = Subject("explainer", "native", space["MyCam"])
    wanted = {
        "check_output",
        "check_batch",
        "check_rows",
        "check_layouts",
        "check_scores",
        "check_forwards",
    }
    outcomes = [run_check(check, subject) for check in CHECKS["explainer"] if check.__name__ in wanted]
    assert [(o.check, o.reason) for o in outcomes if o.status != "passed"] == []
    query = Query(reference_model(), reference_inputs(), torch.tensor([0, 3, 1]), "0", "hirescam")
    torch.testing.assert_close(subject.make().maps(query), loading.make("explainer", "native").maps(query))


def test_every_check_is_explained() -> None:
    page = text("docs/plugins.md")
    assert [c.__name__ for c in CHECKS["explainer"] if f"`{c.__name__}`" not in page] == []


def test_every_option_of_explain_is_in_the_reference() -> None:
    page = text("docs/reference.md")
    names = [opt for p in explain.params for opt in p.opts if opt.startswith("--")]
    assert len(names) > 15
    assert [name for name in names if f"`{name}" not in page and f"{name}`" not in page] == []


def test_every_field_of_the_manifest_is_in_the_reference() -> None:
    page = text("docs/reference.md")
    assert [name for name in FIELDS if f"`{name}`" not in page] == []


def test_every_error_is_in_the_tree() -> None:
    tree = errors.__doc__ or ""
    classes = [c for c in vars(errors).values() if isinstance(c, type) and c.__module__ == "camkit.errors"]
    for cls in classes:
        assert cls.__name__ in tree and cls.__doc__
    for line in tree.splitlines():
        if match := re.search(r"[├└]── (\w+)\s+(\d)", line):
            assert getattr(errors, match[1]).exit_code == int(match[2]), match[1]


def test_links_within_the_repository_lead_somewhere() -> None:
    for page in PAGES:
        # Without code, where `table[key](argument)` is no link.
        prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", prose):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_built_in_names_are_as_the_docs_say() -> None:
    built_in = {found.name for found in discovery.find() if found.dist == "camkit"}
    page = text("docs/plugins.md")
    assert built_in and all(f"`{name}`" in page for name in built_in)
