"""What people install: the wheel holds all that is needed and nothing else, and works unpacked."""

from __future__ import annotations

import email
import json
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camkit.registry.scaffold import TARGETS

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
INFO = f"camkit-{PROJECT['version']}.dist-info"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel, built from the repository without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (archive,) = folder.glob("*.whl")
    assert archive.name == f"camkit-{PROJECT['version']}-py3-none-any.whl"
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(folder / "unpacked")
    return folder / "unpacked"


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def run(wheel: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Python with the wheel before the installed camkit."""
    clean = {key: value for key, value in os.environ.items() if key != "CAMKIT_PLUGINS"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=clean | {"PYTHONPATH": str(wheel)},
        capture_output=True,
        text=True,
    )


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    """No tests, benchmarks, docs or caches."""
    source = ROOT / "src"
    expected = {name for name in names(source / "camkit") if "__pycache__" not in name}
    assert {path.name for path in wheel.iterdir()} == {"camkit", INFO}
    assert names(wheel / "camkit") == expected
    assert {"py.typed", "testing/kit.py", "cli/__init__.py"} <= expected


def test_every_template_is_in_the_wheel(wheel: Path) -> None:
    for kind in ("explainer", "metric", "trainer", "model"):
        for template in TARGETS:
            assert (
                wheel / "camkit" / "registry" / "templates" / f"{template.format(kind=kind)}.in"
            ).is_file()


def test_the_licence_and_the_metadata(wheel: Path) -> None:
    licence = (wheel / INFO / "licenses" / "LICENSE").read_text(encoding="utf-8")
    assert licence == (ROOT / "LICENSE").read_text(encoding="utf-8") and "Apache License" in licence
    metadata = email.message_from_string((wheel / INFO / "METADATA").read_text(encoding="utf-8"))
    assert (metadata["Name"], metadata["Version"]) == ("camkit", PROJECT["version"])
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == PROJECT["requires-python"]
    always = [text for text in metadata.get_all("Requires-Dist", []) if "extra ==" not in text]
    assert sorted(always) == sorted(PROJECT["dependencies"])
    assert "camkit explain" in str(metadata.get_payload())  # the README is the page of the package


def test_the_built_in_plugins_are_announced(wheel: Path, tmp_path: Path) -> None:
    """As plugins are: by the metadata of the wheel."""
    code = (
        "import camkit; from camkit.registry import discovery; print(camkit.__file__);"
        "[print(f.kind, f.name, f.status, bool(discovery.summary(f)))"
        " for f in discovery.find() if f.dist == 'camkit']"
    )
    done = run(wheel, "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    where, *found = done.stdout.splitlines()
    assert Path(where) == wheel / "camkit" / "__init__.py"
    assert found == [
        "explainer native ok True",
        *(f"metric {name} ok True" for name in sorted(PROJECT["entry-points"]["camkit.metrics"])),
        "trainer torch ok True",
        "model bundle ok True",
        "model fastai ok True",
        "model file ok True",
        "model imagenet ok True",
        "model pets ok True",
        "model python ok True",
        "model timm ok True",
        "model torchvision ok True",
        "engine local ok True",
    ]
    assert "camkit = camkit.cli:main" in (wheel / INFO / "entry_points.txt").read_text()


def test_the_wheel_explains_a_photograph(wheel: Path, tmp_path: Path) -> None:
    code = (
        "import runpy, camkit; print(camkit.__file__);"
        "runpy.run_module('camkit', run_name='__main__', alter_sys=True)"
    )
    done = run(wheel, "-c", code, "explain", "--out", "out", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.splitlines()[0]).is_relative_to(wheel)
    (line,) = (tmp_path / "out" / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    record = json.loads(line)
    assert (record["status"], record["backend_dist"]) == ("ok", "camkit")
    assert record["camkit_version"] == PROJECT["version"]
    raw = np.load(tmp_path / "out" / record["map_file"], allow_pickle=False)
    assert list(raw.shape) == record["map_shape"] and np.isfinite(raw).all() and raw.max() > 0
    with Image.open(tmp_path / "out" / record["overlay_file"]) as picture:
        assert len(picture.convert("RGB").getcolors(1 << 24) or ()) > 1000


def test_the_wheel_writes_a_new_plugin(wheel: Path, tmp_path: Path) -> None:
    done = run(wheel, "-m", "camkit", "plugin", "new", "fresh", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    made = names(tmp_path / "camkit-fresh")
    assert len(made) == len(TARGETS)
    assert {"pyproject.toml", ".github/workflows/ci.yml", "src/camkit_fresh/__init__.py"} <= made
