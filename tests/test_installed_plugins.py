"""Real packages in a throw-away environment: scaffolded ones that work, broken ones that hurt nobody."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import textwrap
import venv
from pathlib import Path

import pytest

from camkit.images.decoding import sample


class Environment:
    """A virtual environment that sees the packages of this one, and more that are installed into it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        venv.create(home / "env", with_pip=False, symlinks=True)
        self.python = home / "env" / "bin" / "python"
        site = next((home / "env" / "lib").glob("python*/site-packages"))
        parent = sysconfig.get_path("purelib")
        (site / "parent.pth").write_text(f"import site; site.addsitedir({parent!r})\n")

    def install(self, folder: Path) -> None:
        """`pip install` of a folder, without a network."""
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
        pip += ["--no-deps", "--no-build-isolation", "--disable-pip-version-check", str(folder)]
        subprocess.run(pip, check=True, capture_output=True, text=True)

    def run(self, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """`python -m ...` in the environment."""
        clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "CAMKIT_PLUGINS")}
        return subprocess.run(
            [str(self.python), "-m", *arguments],
            cwd=cwd or self.home,
            env=clean | {"OMP_NUM_THREADS": "2"},
            capture_output=True,
            text=True,
        )

    def camkit(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The command line."""
        return self.run("camkit", *arguments)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("scaffold"))


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


@pytest.mark.parametrize(
    ("name", "kind"),
    [("my-cam", "explainer"), ("my-score", "metric"), ("my-zoo", "model"), ("my-coach", "trainer")],
)
def test_a_new_package_works_at_once(environment: Environment, name: str, kind: str) -> None:
    """Written, installed, tested, listed and used on a photograph; one of them is broken and diagnosed."""
    made = environment.camkit("plugin", "new", name, "--kind", kind)
    assert made.returncode == 0 and "pip install -e" in made.stdout
    folder = environment.home / f"camkit-{name}"
    environment.install(folder)

    tests = environment.run("pytest", "-q", cwd=folder)
    assert tests.returncode == 0, tests.stdout
    listed = environment.camkit("plugin", "list", "--json")
    records = {r["name"]: r for r in map(json.loads, listed.stdout.splitlines())}
    assert records[name]["status"] == "ok" and records[name]["kind"] == kind and records[name]["summary"]

    out = environment.home / f"out-{name}"
    if kind == "explainer":
        used = environment.camkit("explain", "--backend", name, "--method", "hirescam", "--out", str(out))
        held = environment.camkit("plugin", "check", name)
        assert held.returncode == 0 and "all checks pass" in held.stdout, held.stdout
    elif kind == "metric":
        held = environment.camkit("plugin", "check", name)
        assert held.returncode == 0 and "all checks pass" in held.stdout, held.stdout
        used = environment.camkit("explain", "--out", str(out))
    elif kind == "model":
        used = environment.camkit("explain", "--model", f"{name}:tiny", "--out", str(out))
    else:
        train = (
            "import camkit, sys; from pathlib import Path; from camkit.testing.trainers import toy_photos;"
        )
        train += f"camkit.train(toy_photos(Path('toys')), trainer={name!r}, out='run')"
        done = subprocess.run([environment.python, "-c", train], cwd=environment.home, capture_output=True)
        assert done.returncode == 0, done.stderr
        used = environment.camkit("explain", "--model", "run/bundle", "--out", str(out))
    assert used.returncode == 0, used.stderr
    assert list(out.glob(f"{sample().name}.*.png"))

    shown = environment.camkit("plugin", "show", name)
    assert shown.returncode == 0 and f"camkit-{name} 0.1.0" in shown.stdout

    if kind != "metric":
        return
    site = next((environment.home / "env" / "lib").glob("python*/site-packages"))
    source = site / f"camkit_{name.replace('-', '_')}" / "__init__.py"
    whole = source.read_text()
    source.write_text("import no_such_library\n" + whole)
    sick = environment.camkit("plugin", "doctor")
    assert sick.returncode == 1
    assert (
        "No module named 'no_such_library'" in sick.stdout and f"pip uninstall camkit-{name}" in sick.stdout
    )
    assert environment.camkit("explain", "--out", str(out)).returncode == 0  # nobody else is hurt
    source.write_text(whole)
    assert environment.camkit("plugin", "doctor").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("native",), "exists already, in camkit"),
        (("timm", "--kind", "model"), "exists already, in camkit"),
        (("Bad_Name",), "is no name for a plugin"),
        (("../evil",), "is no name for a plugin"),
        (("7cam",), "a letter first"),
        (("",), "is no name for a plugin"),
    ],
)
def test_names_that_are_refused(environment: Environment, arguments: tuple[str, ...], message: str) -> None:
    result = environment.camkit("plugin", "new", *arguments)
    assert result.returncode == 2 and message in result.stderr
    assert "Traceback" not in result.stderr


def test_an_existing_folder_is_left_alone(environment: Environment) -> None:
    folder = environment.home / "camkit-there"
    folder.mkdir()
    result = environment.camkit("plugin", "new", "there")
    assert result.returncode == 2 and "exists already" in result.stderr
    assert not list(folder.iterdir())


# --- packages that are wrong ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """One good plugin among every kind of wrong one."""
    home = tmp_path_factory.mktemp("zoo")
    environment = Environment(home)
    for dist, entry, code, requires in [
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
    ]:
        environment.install(package(home / "src", dist, entry, code, requires))
    return environment


def test_the_good_ones_go_on(zoo: Environment) -> None:
    out = zoo.home / "out"
    used = zoo.camkit("explain", "--backend", "good", "--method", "plain", "--out", str(out))
    assert used.returncode == 0, used.stderr
    assert zoo.camkit("explain", "--out", str(out)).returncode == 0


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


@pytest.mark.parametrize(
    ("backend", "code", "message"),
    [
        ("raises", 1, "RuntimeError: no licence"),
        ("exits", 1, "SystemExit: 3"),
        ("newer", 1, "needs camkit>=99"),
        ("older", 1, "upgrade camkit-older"),
        ("twin", 2, "camkit-twin-a:twin or camkit-twin-b:twin"),
        ("nowhere", 1, "No module named 'camkit_nothing'"),
        ("nobody", 1, "has no attribute 'Missing'"),
        ("nativ", 2, "did you mean 'native'"),
    ],
)
def test_using_a_wrong_one_is_one_line(zoo: Environment, backend: str, code: int, message: str) -> None:
    used = zoo.camkit("explain", "--backend", backend, "--out", str(zoo.home / "never"))
    assert used.returncode == code
    assert message in used.stderr and len(used.stderr.strip().splitlines()) == 1
    assert not (zoo.home / "never").exists()


def test_the_full_name_picks_a_twin(zoo: Environment) -> None:
    used = zoo.camkit(
        "explain", "--backend", "camkit-twin-b:twin", "--method", "plain", "--out", str(zoo.home / "twin")
    )
    assert used.returncode == 0, used.stderr
    line = json.loads((zoo.home / "twin" / "manifest.jsonl").read_text().splitlines()[0])
    assert line["backend_dist"] == "camkit-twin-b"


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
