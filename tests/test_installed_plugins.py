"""Real packages in a throw-away environment: scaffolded ones that work, broken ones that hurt nobody."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import textwrap
import venv
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.conftest import runner

from camkit.cli import cli
from camkit.images.decoding import sample

EACH = """
import inspect, json, sys
from click.testing import CliRunner
from camkit.cli import cli

apart = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}
found = []
for arguments in json.loads(sys.argv[1]):
    done = CliRunner(**apart).invoke(cli, arguments, prog_name="camkit")
    found.append({"returncode": done.exit_code, "stdout": done.stdout, "stderr": done.stderr})
print(json.dumps(found))
"""


class Environment:
    """A virtual environment that sees the packages of this one, and more that are installed into it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        venv.create(home / "env", with_pip=False, symlinks=True)
        self.python = home / "env" / "bin" / "python"
        site = next((home / "env" / "lib").glob("python*/site-packages"))
        parent = sysconfig.get_path("purelib")
        (site / "parent.pth").write_text(f"import site; site.addsitedir({parent!r})\n")

    def install(self, *folders: Path) -> None:
        """`pip install` of folders, without a network."""
        pip = [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(self.python),
            "install",
            "--quiet",
            "--no-index",
        ]
        pip += ["--no-deps", "--no-build-isolation", "--disable-pip-version-check", *map(str, folders)]
        subprocess.run(pip, check=True, capture_output=True, text=True)

    def run(self, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """`python -m ...` in the environment."""
        clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "CAMKIT_PLUGINS")}
        return subprocess.run(
            [str(self.python), "-m", *arguments],
            cwd=cwd or self.home,
            env=clean,
            capture_output=True,
            text=True,
        )

    def camkit(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The command line."""
        return self.run("camkit", *arguments)

    def each(self, *commands: Sequence[str]) -> list[SimpleNamespace]:
        """What several commands do, one after the other in one process: importing torch takes long."""
        clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "CAMKIT_PLUGINS")}
        done = subprocess.run(
            [str(self.python), "-c", EACH, json.dumps(commands)],
            cwd=self.home,
            env=clean,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return [SimpleNamespace(**result) for result in json.loads(done.stdout.splitlines()[-1])]


def package(home: Path, dist: str, entry: str, code: str, requires: str = "camkit") -> Path:
    """A minimal distribution with one explainer."""
    module = dist.replace("-", "_")
    folder = home / dist
    (folder / module).mkdir(parents=True)
    (folder / module / "__init__.py").write_text(textwrap.dedent(code))
    (folder / "pyproject.toml").write_text(
        textwrap.dedent(f"""
        [build-system]
        requires = ["hatchling"]
        build-backend = "hatchling.build"
        [project]
        name = "{dist}"
        version = "1.0"
        dependencies = ["{requires}"]
        [project.entry-points."camkit.explainers"]
        {entry}
        """)
    )
    return folder


GOOD = """
    from camkit import Explainer

    class Plain(Explainer):
        summary = "The channel mean of the input"
        methods = ("plain",)

        def maps(self, query):
            return query.inputs.mean(1)
"""


# --- scaffolded packages --------------------------------------------------------------------------


KINDS = {"my-cam": "explainer", "my-score": "metric", "my-zoo": "model", "my-coach": "trainer"}


@pytest.fixture(scope="module")
def scaffolded(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """A package of each kind, written and installed."""
    environment = Environment(tmp_path_factory.mktemp("scaffold"))
    made = environment.each(*(["plugin", "new", name, "--kind", kind] for name, kind in KINDS.items()))
    assert all(one.returncode == 0 and "pip install -e" in one.stdout for one in made), made
    environment.install(*(environment.home / f"camkit-{name}" for name in KINDS))
    return environment


@pytest.mark.parametrize("name", KINDS)
def test_the_tests_of_a_new_package_pass_at_once(scaffolded: Environment, name: str) -> None:
    tests = scaffolded.run("pytest", "-q", cwd=scaffolded.home / f"camkit-{name}")
    assert tests.returncode == 0, tests.stdout


def test_new_packages_are_listed_shown_checked_and_used(scaffolded: Environment) -> None:
    train = "import camkit; from pathlib import Path; from camkit.testing.trainers import toy_photos;"
    train += "camkit.train(toy_photos(Path('toys')), trainer='my-coach', out='run')"
    trained = subprocess.run([scaffolded.python, "-c", train], cwd=scaffolded.home, capture_output=True)
    assert trained.returncode == 0, trained.stderr
    listed, *done = scaffolded.each(
        ("plugin", "list", "--json"),
        *(("plugin", "show", name) for name in KINDS),
        ("plugin", "check", "my-cam"),
        ("plugin", "check", "my-score"),
        ("explain", "--backend", "my-cam", "--method", "hirescam", "--out", "out-my-cam"),
        ("explain", "--model", "my-zoo:tiny", "--out", "out-my-zoo"),
        ("explain", "--model", "run/bundle", "--out", "out-my-coach"),
    )
    records = {r["name"]: r for r in map(json.loads, listed.stdout.splitlines())}
    for name, kind in KINDS.items():
        assert (
            records[name]["status"] == "ok" and records[name]["kind"] == kind and records[name]["summary"]
        )
    assert [one.returncode for one in done] == [0] * 9, [one.stderr for one in done]
    shown, checked = done[:4], done[4:6]
    assert all(f"camkit-{name} 0.1.0" in one.stdout for name, one in zip(KINDS, shown, strict=True))
    assert all("all checks pass" in one.stdout for one in checked)
    for name in ("my-cam", "my-zoo", "my-coach"):
        assert list((scaffolded.home / f"out-{name}").glob(f"{sample().name}.*.png"))


def test_a_package_that_breaks_is_diagnosed_and_hurts_nobody_else(scaffolded: Environment) -> None:
    site = next((scaffolded.home / "env" / "lib").glob("python*/site-packages"))
    source = site / "camkit_my_score" / "__init__.py"
    whole = source.read_text()
    source.write_text("import no_such_library\n" + whole)
    sick, used = scaffolded.each(("plugin", "doctor"), ("explain", "--out", "out"))
    assert sick.returncode == 1 and used.returncode == 0
    assert "No module named 'no_such_library'" in sick.stdout
    assert "pip uninstall camkit-my-score" in sick.stdout
    source.write_text(whole)
    assert scaffolded.camkit("plugin", "doctor").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("native",), "exists already, in camkit"),
        (("timm", "--kind", "model"), "exists already, in camkit"),
        (("Bad_Name",), "'Bad_Name'"),
        (("../evil",), "'../evil'"),
        (("7cam",), "a letter first"),
        (("",), "''"),
        (("there",), "camkit-there"),
    ],
)
def test_names_that_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "camkit-there").mkdir()
    result = runner().invoke(cli, ["plugin", "new", *arguments])
    assert result.exit_code == 2 and message in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.rglob("*")) == [tmp_path / "camkit-there"]


# --- packages that are wrong ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """One good plugin among every kind of wrong one."""
    home = tmp_path_factory.mktemp("zoo")
    environment = Environment(home)
    packages = [
        ("camkit-good", 'good = "camkit_good:Plain"', GOOD, "camkit"),
        ("camkit-raises", 'raises = "camkit_raises:Plain"', "raise RuntimeError('no licence')", "camkit"),
        ("camkit-exits", 'exits = "camkit_exits:Plain"', "import sys; sys.exit(3)", "camkit"),
        ("camkit-newer", 'newer = "camkit_newer:Plain"', GOOD, "camkit>=99"),
        ("camkit-older", 'older = "camkit_older:Plain"', GOOD, "camkit<0.1"),
        ("camkit-twin-a", 'twin = "camkit_twin_a:Plain"', GOOD, "camkit"),
        ("camkit-twin-b", 'twin = "camkit_twin_b:Plain"', GOOD, "camkit"),
        ("camkit-shadow", 'native = "camkit_shadow:Plain"', GOOD, "camkit"),
        ("camkit-nowhere", 'nowhere = "camkit_nothing:Plain"', GOOD, "camkit"),
        ("camkit-nobody", 'nobody = "camkit_nobody:Missing"', GOOD, "camkit"),
    ]
    environment.install(*(package(home / "src", *parts) for parts in packages))
    return environment


def test_the_good_ones_go_on_and_the_full_name_picks_a_twin(zoo: Environment) -> None:
    done = zoo.each(
        ("explain", "--backend", "good", "--method", "plain", "--out", "out"),
        ("explain", "--out", "out"),
        ("explain", "--backend", "camkit-twin-b:twin", "--method", "plain", "--out", "twin"),
    )
    assert [one.returncode for one in done] == [0, 0, 0], [one.stderr for one in done]
    line = json.loads((zoo.home / "twin" / "manifest.jsonl").read_text().splitlines()[0])
    assert line["backend_dist"] == "camkit-twin-b"


def test_the_list_says_what_is_wrong_without_importing(zoo: Environment) -> None:
    listed = zoo.camkit("plugin", "list", "--json")
    assert listed.returncode == 0
    status = {(r["name"], r["distribution"]): r for r in map(json.loads, listed.stdout.splitlines())}
    assert status["raises", "camkit-raises"]["status"] == "ok"  # only importing would tell
    assert "needs camkit>=99" in status["newer", "camkit-newer"]["problem"]
    assert "upgrade camkit-older" in status["older", "camkit-older"]["problem"]
    assert status["twin", "camkit-twin-a"]["status"] == "ambiguous"
    assert "built into camkit" in status["native", "camkit-shadow"]["problem"]
    assert status["native", "camkit"]["status"] == "ok"


WRONG = {
    "raises": (1, "RuntimeError: no licence"),
    "exits": (1, "SystemExit: 3"),
    "newer": (1, "needs camkit>=99"),
    "older": (1, "upgrade camkit-older"),
    "twin": (2, "camkit-twin-a:twin or camkit-twin-b:twin"),
    "nowhere": (1, "No module named 'camkit_nothing'"),
    "nobody": (1, "'Missing'"),
    "nativ": (2, "did you mean 'native'"),
}


def test_using_a_wrong_one_is_one_line(zoo: Environment) -> None:
    tried = zoo.each(*(("explain", "--backend", backend, "--out", "never") for backend in WRONG))
    for (backend, (code, message)), used in zip(WRONG.items(), tried, strict=True):
        assert used.returncode == code and message in used.stderr, backend
        assert len(used.stderr.strip().splitlines()) == 1, backend
    alone = zoo.camkit("explain", "--backend", "raises", "--out", "never")
    assert (alone.returncode, alone.stderr) == (tried[0].returncode, tried[0].stderr)
    assert not (zoo.home / "never").exists()


def test_the_doctor_names_each_trouble_and_its_mend(zoo: Environment) -> None:
    told = zoo.camkit("plugin", "doctor")
    assert told.returncode == 1
    for text in (
        "no licence",
        "SystemExit: 3",
        "needs camkit>=99",
        "upgrade camkit-older",
        "write camkit-twin-a:twin",
        "built into camkit",
        "camkit_nothing",
        "'Missing'",
        "pip uninstall camkit-raises",
        "ok    explainer good",
        "9 plugins cannot be used",
    ):
        assert text in told.stdout, text
