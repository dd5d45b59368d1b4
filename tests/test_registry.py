"""Finding plugins from metadata alone, loading the one that is used, and reading options."""

from __future__ import annotations

import importlib.metadata
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from camkit import option
from camkit.errors import (
    AmbiguousPlugin,
    BrokenPlugin,
    CamkitWarning,
    OptionError,
    PluginNotFound,
    closest,
)
from camkit.registry import discovery, loading, options
from camkit.registry.discovery import Found, Kind

GOOD = """
    from camkit import Explainer

    class Plain(Explainer):
        summary = "The channel mean"
        methods = ("plain",)

        def maps(self, query):
            return query.inputs.mean(1)
"""


class Site:
    """A folder on `sys.path` that packages are installed into by writing their metadata."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def add(
        self,
        dist: str,
        *entries: str,
        code: str | None = GOOD,
        requires: Sequence[str] = (),
        version: str = "1.0",
        group: str = "camkit.explainers",
    ) -> Path:
        """Install `dist`, whose module is its name with underscores; its metadata folder."""
        module = dist.replace("-", "_")
        info = self.folder / f"{module}-{version}.dist-info"
        info.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {dist}", f"Version: {version}"]
        lines += [f"Requires-Dist: {text}" for text in requires]
        (info / "METADATA").write_text("\n".join(lines) + "\n")
        announced = entries or (f"{dist.removeprefix('fake-')} = {module}:Plain",)
        (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *announced]) + "\n")
        if code is not None:
            (self.folder / f"{module}.py").write_text(textwrap.dedent(code))
        return info


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.delenv("CAMKIT_PLUGINS", raising=False)
    site = Site(tmp_path / "site")
    monkeypatch.syspath_prepend(str(site.folder))
    before = set(sys.modules)
    yield site
    for name in set(sys.modules) - before:
        if name.startswith("fake_"):
            del sys.modules[name]
    loading.load.cache_clear()  # its keys are equal in the next test, their classes are not


def fakes(kind: Kind | None = None) -> list[Found]:
    return [found for found in discovery.find(kind) if found.dist.startswith("fake-")]


def the(dist: str) -> Found:
    (found,) = [found for found in discovery.find() if found.dist == dist]
    return found


# --- found ----------------------------------------------------------------------------------------


def test_finding_reads_metadata_only(site: Site) -> None:
    site.add("fake-raising", code="raise RuntimeError('imported')")
    found = the("fake-raising")
    assert found == Found("explainer", "raising", "fake_raising:Plain", "fake-raising", "1.0")
    assert (found.status, found.full_name) == ("ok", "fake-raising:raising")
    assert discovery.summary(found) == ""
    assert discovery.get("explainer", "raising") == found
    assert "fake_raising" not in sys.modules


def test_the_list_is_sorted_and_always_the_same(site: Site) -> None:
    site.add("fake-zebra", "a = fake_zebra:Plain", "z = fake_zebra:Plain")
    site.add("fake-ant", "b = fake_ant:Plain", "a = fake_ant:Plain")
    site.add("fake-model", "a = fake_model:Source", group="camkit.models")
    site.add("fake-trainer", "a = fake_trainer:Coach", group="camkit.trainers")
    site.add("fake-stranger", "a = fake_stranger:Thing", group="camkit.unheard-of")
    assert [(f.kind, f.name, f.dist) for f in fakes()] == [
        ("explainer", "a", "fake-ant"),
        ("explainer", "a", "fake-zebra"),
        ("explainer", "b", "fake-ant"),
        ("explainer", "z", "fake-zebra"),
        ("trainer", "a", "fake-trainer"),
        ("model", "a", "fake-model"),
    ]
    first = discovery.find()
    discovery._scan.cache_clear()
    assert discovery.find() == first
    assert [f.kind for f in fakes("model")] == ["model"]


def test_the_first_package_on_the_path_is_the_one_that_counts(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with imports: an editable install before an older wheel, for example."""
    site.add("fake-twice", version="1.0")
    front = Site(tmp_path / "front")
    front.add("fake-twice", version="2.0")
    monkeypatch.syspath_prepend(str(front.folder))
    assert [f.version for f in fakes()] == ["2.0"]


def test_the_same_name_in_two_kinds_is_not_ambiguous(site: Site) -> None:
    site.add("fake-one", "same = fake_one:Plain")
    site.add("fake-two", "same = fake_two:Source", group="camkit.models")
    assert [f.status for f in fakes()] == ["ok", "ok"]
    assert discovery.get("model", "same").dist == "fake-two"


def test_a_name_that_two_packages_offer_needs_the_package(site: Site) -> None:
    site.add("fake-a", "twin = fake_a:Plain")
    site.add("fake-b", "twin = fake_b:Plain")
    assert [f.status for f in fakes()] == ["ambiguous", "ambiguous"]
    with pytest.raises(AmbiguousPlugin, match="fake-a:twin or fake-b:twin"):
        discovery.get("explainer", "twin")
    assert discovery.get("explainer", "fake-b:twin").dist == "fake-b"


def test_one_that_cannot_be_used_makes_no_name_ambiguous(site: Site) -> None:
    site.add("fake-a", "twin = fake_a:Plain", requires=["camkit>=99"])
    site.add("fake-b", "twin = fake_b:Plain")
    assert [f.status for f in fakes()] == ["broken", "ok"]
    assert discovery.get("explainer", "twin").dist == "fake-b"
    site.add("fake-c", "twin = fake_c:Plain")
    discovery._scan.cache_clear()
    assert [(f.status, f.ambiguous) for f in fakes()] == [
        ("broken", False),
        ("ambiguous", True),
        ("ambiguous", True),
    ]


def test_built_in_names_cannot_be_taken(site: Site) -> None:
    site.add("fake-shadow", "native = fake_shadow:Plain")
    assert "'native' is built into camkit" in (the("fake-shadow").problem or "")
    assert discovery.get("explainer", "native").dist == "camkit"
    with pytest.raises(BrokenPlugin, match=r"fake-shadow .*'native' is built"):
        discovery.get("explainer", "fake-shadow:native")


def test_a_built_in_name_of_another_kind_is_free(site: Site) -> None:
    site.add("fake-free", "timm = fake_free:Plain")
    assert the("fake-free").status == "ok"


@pytest.mark.parametrize("name", ["Upper", "with blank", "under_score", "dot.ted", "ümlaut", "a:b", "a/b"])
def test_names_of_a_wrong_form(site: Site, name: str) -> None:
    site.add("fake-name", f"{name} = fake_name:Plain")
    with pytest.raises(BrokenPlugin, match=r"\[a-z0-9-\]\+"):
        discovery.get("explainer", name)


@pytest.mark.parametrize(
    "value",
    [
        "fake_value",
        "fake_value:",
        ":Plain",
        "fake_value:Plain:More",
        "fake_value Plain",
        "fake_value:Plain [extra]",
        "../evil:Plain",
    ],
)
def test_entry_points_of_a_wrong_form(site: Site, value: str) -> None:
    site.add("fake-value", f"value = {value}")
    found = the("fake-value")
    assert "module:Class" in (found.problem or "")
    if "Plain" not in value:
        assert discovery.summary(found) == ""


def test_a_nested_class_is_fine(site: Site) -> None:
    site.add("fake-nested", "nested = fake_nested:Outer.Plain", code=f"class Outer:{GOOD}")
    assert loading.load(discovery.get("explainer", "nested")).__qualname__ == "Outer.Plain"


# --- the camkit that a plugin asks for ------------------------------------------------------------


@pytest.mark.parametrize(
    ("requirement", "problem"),
    [
        ("camkit", None),
        ("camkit>=0.1", None),
        ("camkit >= 0.1", None),
        ("camkit (>=0.1)", None),
        ("Camkit[extra]>=0.1,<99", None),
        ("camkit~=0.1.0", None),
        ("camkit==0.1.*", None),
        ("camkit!=0.0.9", None),
        ("camkit @ https://example.org/camkit.whl", None),
        ("camkit-other>=99", None),
        ("camkit>=99", "needs camkit>=99, this is 0.1.0: upgrade camkit"),
        ("camkit[extra]>=99", "upgrade camkit"),
        ("CAMKIT (>=99)", "upgrade camkit"),
        ("camkit>=0.1,!=0.1.0", "upgrade fake-needs"),
        ("camkit>0.1.0", "upgrade camkit"),
        ("camkit~=0.2", "upgrade camkit"),
        ("camkit==0.2.*", "upgrade camkit"),
        ("camkit==7.1", "upgrade camkit"),
        ("camkit<0.1", "needs camkit<0.1, this is 0.1.0: upgrade fake-needs"),
        ("camkit>=0.0.1,<0.0.9", "upgrade fake-needs"),
        ("camkit~=0.0.1", "upgrade fake-needs"),
        ("camkit==0.0.1", "upgrade fake-needs"),
        ("camkit>=new", "its requirement camkit>=new cannot be read"),
        ("camkit<<1", "cannot be read"),
        ("camkit>=99; python_version >= '3'", "upgrade camkit"),
        ("camkit>=99; python_version < '3'", None),
        ("camkit>=99 ; extra == 'later'", None),
        ("camkit>=99; extra == 'later' or python_version >= '3'", "upgrade camkit"),
    ],
)
def test_requirements(
    site: Site, requirement: str, problem: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.1.0")
    site.add("fake-needs", requires=["torch", requirement])
    found = the("fake-needs")
    assert (problem or "") in (found.problem or "")
    assert found.status == ("broken" if problem else "ok")


def test_every_requirement_counts(site: Site) -> None:
    site.add("fake-needs", requires=["camkit>=0.1", "camkit<0.1"])
    assert "upgrade fake-needs" in (the("fake-needs").problem or "")


def test_a_pre_release_of_camkit_is_taken(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.2.0.dev1")
    site.add("fake-needs", requires=["camkit>=0.1,<1"])
    assert the("fake-needs").status == "ok"


# --- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("METADATA", b"Name: \xff\xfe\n"),
        ("METADATA", b""),
        ("METADATA", None),
        ("entry_points.txt", b"[camkit.explainers]\nhurt = \xff\xfe\n"),
        ("entry_points.txt", b"[camkit.explainers]\nhurt\n"),
    ],
)
def test_a_damaged_package_warns_and_hurts_nobody(site: Site, file: str, content: bytes | None) -> None:
    site.add("fake-well")
    damaged = site.add("fake-hurt") / file
    damaged.unlink() if content is None else damaged.write_bytes(content)
    with pytest.warns(CamkitWarning, match=r"fake_hurt-1\.0\.dist-info.*reinstall"):
        assert [f.name for f in fakes()] == ["well"]
    assert discovery.get("explainer", "native").status == "ok"


def test_a_package_without_a_version_is_listed(site: Site) -> None:
    info = site.add("fake-unversioned")
    (info / "METADATA").write_text("Name: fake-unversioned\n")
    assert the("fake-unversioned").version == "?"


# --- CAMKIT_PLUGINS -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "allowed"),
    [
        (None, ["one", "two"]),
        ("", []),
        (" , ", []),
        ("fake-two", ["two"]),
        ("Fake_Two", ["two"]),
        (" fake.one , fake--two,", ["one", "two"]),
        ("no-such-package", []),
    ],
)
def test_the_variable_restricts_what_may_be_used(
    site: Site, monkeypatch: pytest.MonkeyPatch, value: str | None, allowed: list[str]
) -> None:
    site.add("fake-one")
    site.add("fake-two")
    if value is not None:
        monkeypatch.setenv("CAMKIT_PLUGINS", value)
    assert [f.name for f in fakes()] == allowed
    assert discovery.get("explainer", "native").dist == "camkit"
    if value == "":
        assert {f.dist for f in discovery.find()} == {"camkit"}
        with pytest.raises(PluginNotFound, match="CAMKIT_PLUGINS"):
            discovery.get("explainer", "one")


# --- got ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("explainer", "nativ", "explainer 'nativ'.*'native'"),
        ("explainer", "NATIVE", "'NATIVE'.*'native'"),
        ("explainer", "qqqqqqq", "native.*`camkit plugin list`"),
        ("model", "torchvison", "model 'torchvison'.*'torchvision'"),
        ("model", "native", "model 'native'"),
        ("explainer", "camkit:nativ", "explainer .*nativ'"),
        ("explainer", "", "explainer ''"),
    ],
)
def test_unknown_names_get_a_hint(site: Site, kind: Kind, name: str, message: str) -> None:
    with pytest.raises(PluginNotFound, match=message):
        discovery.get(kind, name)


def test_no_hint_leads_to_one_that_cannot_be_used(site: Site) -> None:
    site.add("fake-plain", "plain = fake_plain:Plain", requires=["camkit>=99"])
    with pytest.raises(PluginNotFound) as raised:
        discovery.get("explainer", "plainn")
    assert "'plain'" not in str(raised.value)


def test_a_package_installed_a_moment_ago_is_found(site: Site) -> None:
    site.add("fake-early")
    assert [f.name for f in fakes()] == ["early"]
    site.add("fake-late")
    assert discovery.get("explainer", "late").dist == "fake-late"
    assert [f.name for f in fakes()] == ["early", "late"]


def test_a_package_mended_a_moment_ago_works(site: Site) -> None:
    info = site.add("fake-sick", requires=["camkit>=99"])
    with pytest.raises(BrokenPlugin, match="upgrade camkit"):
        discovery.get("explainer", "sick")
    (info / "METADATA").write_text("Name: fake-sick\nVersion: 1.0\n")
    assert discovery.get("explainer", "sick").status == "ok"


def test_a_module_mended_a_moment_ago_works(site: Site) -> None:
    site.add("fake-sick", code="import no_such_library\n")
    found = discovery.get("explainer", "sick")
    with pytest.raises(BrokenPlugin, match="no_such_library"):
        loading.load(found)
    (site.folder / "fake_sick.py").write_text(textwrap.dedent(GOOD))
    assert loading.load(found).methods == ("plain",)


# --- loaded ---------------------------------------------------------------------------------------


def test_loading_gives_the_class_once(site: Site) -> None:
    site.add("fake-good", code=GOOD + "\n    runs = globals().get('runs', 0) + 1\n")
    cls = loading.load(discovery.get("explainer", "good"))
    assert cls.summary == "The channel mean" and loading.load(the("fake-good")) is cls
    assert isinstance(loading.make("explainer", "good"), cls)


BODY = """
        def maps(self, query):
            return query.inputs.mean(1)
"""


def explainer(*lines: str, body: str = BODY, before: str = "") -> str:
    """The source of a class `Plain` with these lines; good but for what they say."""
    said = "".join(f"        {line}\n" for line in lines)
    return f"""
    from __future__ import annotations
    from dataclasses import dataclass
    from camkit import Explainer, option
    {before}
    class Plain(Explainer):
        summary = "Plain"
        methods = ("plain",)
{said}{body}"""


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise RuntimeError('no licence\\nsecond line')", "RuntimeError: no licence$"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("raise SystemExit", "SystemExit"),
        ("def broken(:", "SyntaxError"),
        ("", "AttributeError: .*'Plain'"),
        ("Plain = 3", "fake_wrong:Plain .*camkit.Explainer"),
        ("class Plain: pass", "subclass of camkit.Explainer"),
        ("from camkit import ModelSource as Plain", "subclass of camkit.Explainer"),
        ("import camkit\ndef Plain(options): return camkit.Explainer", "subclass"),
        (explainer(body=""), "define maps"),
        (explainer("api_version = 0"), "API 0, .* 1: upgrade fake-wrong$"),
        (explainer("api_version = 2"), "API 2, .* 1: upgrade camkit$"),
        (explainer("api_version = 'two'"), "API two"),
        (explainer("summary = ''"), "define summary"),
        (explainer("del summary"), "define summary"),
        (explainer("summary = ('a', 'b')"), r"summary .*\('a', 'b'\).* str"),
        (explainer("methods = ()"), "define methods"),
        (explainer("del methods"), "define methods"),
        (explainer("methods = ('plain')"), "methods .*'plain'.*tuple"),
        (explainer("methods = ['plain']"), r"methods .*\['plain'\].*tuple"),
        (explainer("Options = dict"), "Options of fake_wrong:Plain .*dataclass"),
        (explainer("Options = None"), "dataclass"),
        (explainer("@dataclass", "class Made: a: int = 1", "Options = Made()"), "dataclass"),
        (explainer("@dataclass", "class Options: needed: int"), "defaults: .*'needed'"),
        (
            explainer("@dataclass", "class Options: a: Nowhere = 1"),
            "defaults: NameError.*Nowhere",
        ),
    ],
)
def test_what_keeps_no_promise_is_broken(site: Site, code: str, message: str) -> None:
    site.add("fake-wrong", code=code)
    found = discovery.get("explainer", "wrong")
    with pytest.raises(BrokenPlugin, match=message) as raised:
        loading.load(found)
    assert str(raised.value).startswith("explainer 'wrong' from fake-wrong 1.0")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("group", "kind", "base", "method"),
    [("camkit.models", "model", "ModelSource", "load"), ("camkit.trainers", "trainer", "Trainer", "train")],
)
def test_other_kinds_are_held_to_their_own_base(
    site: Site, group: str, kind: Kind, base: str, method: str
) -> None:
    whole = f"from camkit import {base}\nclass Plain({base}):\n    summary = 'S'\n"
    site.add("fake-bare", code=whole, group=group)
    site.add("fake-whole", code=f"{whole}    def {method}(self, *a, **k): ...\n", group=group)
    site.add("fake-other", group=group)
    assert loading.make(kind, "whole").summary == "S"
    for name, message in (("bare", f"define {method}"), ("other", f"subclass of camkit.{base}")):
        with pytest.raises(BrokenPlugin, match=message):
            loading.load(discovery.get(kind, name))


@pytest.mark.parametrize(
    ("raised", "kind", "message"),
    [
        ("RuntimeError('no GPU')", BrokenPlugin, "'picky' .*RuntimeError: no GPU"),
        # A plugin that knows camkit's errors speaks for itself.
        ("__import__('camkit.errors').errors.OptionError('mine')", OptionError, "^mine$"),
    ],
)
def test_a_constructor_that_raises(site: Site, raised: str, kind: type[Exception], message: str) -> None:
    site.add("fake-picky", code=explainer("def __init__(self, options):", f"    raise {raised}"))
    with pytest.raises(kind, match=message):
        loading.make("explainer", "picky")


def test_options_reach_the_constructor(site: Site) -> None:
    code = explainer("@dataclass(frozen=True)", "class Options: size: int = option(1, help='of it', min=1)")
    site.add("fake-sized", code=code)
    assert loading.make("explainer", "sized").options.size == 1
    assert loading.make("explainer", "sized", {"size": "3"}).options.size == 3
    with pytest.raises(OptionError, match=r"size of sized .*at least 1.*'0'"):
        loading.make("explainer", "sized", {"size": "0"})


# --- the summary, without running anything --------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "summary"),
    [
        ("class Plain:\n    summary = 'Said'\n", "Said"),
        ("class Plain(A, b=1):\n    '''Doc.'''\n    x = 1\n\n    summary = 'Said'\ny = 2\n", "Said"),
        ("class Plain(\n    A,\n):\n    summary = 'Said'\n", "Said"),
        ("@decorated\nclass Plain:\n    summary: ClassVar[str] = 'Said'\n", "Said"),
        ("class Plain:\n    summary = (\n        'In two '\n        'parts'\n    )\n", "In two parts"),
        ("class PlainToo:\n    summary = 'Not this'\nclass Plain:\n    summary = 'Said'\n", "Said"),
        ("class Plain:\n    pass\nclass PlainToo:\n    summary = 'Not this'\n", ""),
        ("class Plain:\n    summary = 'a' + b\n", ""),
        ("class Plain:\n    summary = f'{b}'\n", ""),
        ("class Plain:\n    summary = 3\n", ""),
        ("class Plain:\n    summary: str\n", ""),
        ("class Plain:\n    summary = 'cut\n", ""),
        ("class Other:\n    summary = 'Not this'\n", ""),
        ("class Plain(:\n", ""),
        ("", ""),
    ],
)
def test_the_summary_is_read_from_the_source(site: Site, code: str, summary: str) -> None:
    site.add("fake-said", code=f"raise RuntimeError('imported')\n{code}")
    assert discovery.summary(the("fake-said")) == summary
    assert "fake_said" not in sys.modules


@pytest.mark.parametrize(
    ("module", "file"),
    [
        ("fake_deep", "fake_deep/__init__.py"),
        ("fake_deep.inner", "fake_deep/inner.py"),
        ("fake_deep.inner", "fake_deep/inner/__init__.py"),
        ("fake_deep.inner.most", "fake_deep/inner/most.py"),
    ],
)
def test_the_summary_of_packages_and_submodules(site: Site, module: str, file: str) -> None:
    site.add("fake-deep", f"deep = {module}:Plain", code=None)
    path = site.folder / file
    path.parent.mkdir(parents=True)
    path.write_text("class Plain:\n    summary = 'Deep'\n")
    assert discovery.summary(the("fake-deep")) == "Deep"


def test_a_source_that_is_no_text_has_no_summary(site: Site) -> None:
    site.add("fake-latin", code=None)
    assert discovery.summary(the("fake-latin")) == ""  # no such module
    (site.folder / "fake_latin.py").write_bytes(b"class Plain:\n    summary = '\xff'\n")
    assert discovery.summary(the("fake-latin")) == ""


def test_the_summary_is_what_the_class_says() -> None:
    for found in discovery.find():
        if found.dist == "camkit":
            assert discovery.summary(found) == loading.load(found).summary != ""


# --- options --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Options:
    """One field of each kind."""

    count: int = option(3, help="", min=1, max=5)
    share: float = option(0.5, help="", min=0)
    bound: float = option(0.0, help="", max=1)
    free: float = option(0.0, help="")
    whole: int = option(0, help="")
    flag: bool = option(False, help="")
    text: str = option("", help="")
    pick: Literal["mean", "max", 3] = option("mean", help="")
    chosen: str = option("a", help="", choices=("a", "b"))
    size: int | None = option(None, help="", min=2)
    label: str | None = option(None, help="")
    two_words: int = option(0, help="")
    path: Path = field(default=Path())


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("count", "4", 4),
        ("count", 4, 4),
        ("count", "1", 1),
        ("count", 5, 5),
        ("share", "1e-3", 0.001),
        ("share", 2, 2.0),
        ("share", "inf", float("inf")),
        ("bound", "-7", -7.0),
        ("bound", 1, 1.0),
        ("whole", "-12", -12),
        ("flag", "true", True),
        ("flag", "Yes", True),
        ("flag", "ON", True),
        ("flag", "1", True),
        ("flag", "false", False),
        ("flag", "no", False),
        ("flag", "off", False),
        ("flag", "0", False),
        ("flag", True, True),
        ("text", "none", "none"),
        ("text", "", ""),
        ("text", "12", "12"),
        ("pick", "max", "max"),
        ("pick", "3", 3),
        ("pick", 3, 3),
        ("chosen", "b", "b"),
        ("size", "none", None),
        ("size", None, None),
        ("size", "2", 2),
        ("size", 7, 7),
        ("label", "none", None),
        ("label", "some", "some"),
        ("two_words", "1", 1),
        ("two-words", "1", 1),
        ("path", Path("x"), Path("x")),
    ],
)
def test_texts_and_values_become_the_field(key: str, value: Any, expected: Any) -> None:
    got = getattr(options.read_options(Options, {key: value}, owner="toy"), key.replace("-", "_"))
    assert got == expected and type(got) is type(expected)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("count", "many", "count of toy .*int, not 'many'"),
        ("count", "1.5", "must be int, not '1.5'"),
        ("count", 1.0, "must be int, not 1.0"),
        ("count", True, "must be int, not True"),
        ("count", None, "must be int, not None"),
        ("count", "0", "must be between 1 and 5, not '0'"),
        ("count", 6, "must be between 1 and 5, not 6"),
        ("share", "-0.1", "must be at least 0, not '-0.1'"),
        ("share", "nan", "must be at least 0, not 'nan'"),
        ("bound", float("nan"), "must be at most 1, not nan"),
        ("bound", "1.01", "must be at most 1"),
        ("share", "half", "must be float"),
        ("share", False, "must be float, not False"),
        ("flag", "maybe", r"must be true\|false, not 'maybe'"),
        ("flag", 1, r"must be true\|false, not 1"),
        ("text", 3, "must be str, not 3"),
        ("pick", "min", r"must be mean\|max\|3, not 'min'"),
        ("chosen", "c", "must be one of a, b, not 'c'"),
        ("size", "big", "must be int or none, not 'big'"),
        ("size", "1", "must be at least 2, not '1'"),
        ("two-words", "x", "two-words of toy .*int"),
        ("path", 3, "must be Path"),
        ("cuont", "1", "toy .*'cuont'.*'count'"),
        ("qqqq", "1", r"'qqqq' .*count, share, .*path"),
    ],
)
def test_wrong_options_say_what_would_be_right(key: str, value: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        options.read_options(Options, {key: value}, owner="toy")


def test_what_is_hardly_alike_is_not_suggested() -> None:
    assert closest("fast", ["absolute", "baseline"]) == ""
    assert closest("fas", ["absolute", "fast"]) == "; did you mean 'fast'?"


def test_a_plugin_without_options_says_so() -> None:
    @dataclass
    class Nothing:
        pass

    assert options.read_options(Nothing, {}, owner="toy") == Nothing()
    with pytest.raises(OptionError, match="none"):
        options.read_options(Nothing, {"any": 1}, owner="toy")


def test_a_class_may_refuse_what_does_not_fit_together() -> None:
    @dataclass
    class Span:
        low: int = 0
        high: int = 1

        def __post_init__(self) -> None:
            if self.low >= self.high:
                raise ValueError("low must be below high")

    with pytest.raises(OptionError, match="toy: low must be below high"):
        options.read_options(Span, {"low": "3"}, owner="toy")


@dataclass(frozen=True)
class Left:
    """Shares `both` with `Right`."""

    both: int = 0
    left: int = 0


@dataclass(frozen=True)
class Right:
    """Shares `both` with `Left`."""

    both: int = 0
    the_right: int = 0


def test_shared_options_go_to_whoever_has_them() -> None:
    values = {"both": "1", "left": "2", "the-right": "3"}
    shared = options.share_options({"l": Left, "r": Right}, values)
    assert shared == {"l": Left(1, 2), "r": Right(1, 3)}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"neither": "1"}, "option 'neither'"),
        ({"lefd": "1"}, "l .*'lefd'.*'left'"),
        ({"both": "x"}, "both of l .*int"),
        ({"the-right": "x"}, "the-right of r .*int"),
    ],
)
def test_shared_options_that_nobody_takes(values: dict[str, str], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        options.share_options({"l": Left, "r": Right}, values)


def test_assignments() -> None:
    texts = ("a=1", " b = two words ", "c=x=y", "d=", "a=2")
    assert options.parse_assignments(texts) == {"a": "2", "b": "two words", "c": "x=y", "d": ""}
    assert options.parse_assignments(()) == {}


@pytest.mark.parametrize("text", ["a", "=1", " =1", "", "="])
def test_what_is_no_assignment(text: str) -> None:
    with pytest.raises(OptionError, match="KEY=VALUE"):
        options.parse_assignments((text,))


@pytest.mark.parametrize(
    ("hint", "name"),
    [
        (int, "int"),
        (bool, "true|false"),
        (str, "str"),
        (Literal["a", 2], "a|2"),
        (int | None, "int or none"),
        (Literal["a", "b"] | float | None, "a|b or float or none"),
        (Any, "Any"),
    ],
)
def test_types_by_name(hint: Any, name: str) -> None:
    assert options.type_name(hint) == name
