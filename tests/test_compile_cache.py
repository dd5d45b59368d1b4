"""The cache folder: nobody else's, and all that fast mode compiles is in it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import camkit
from camkit.errors import CamkitError, CamkitWarning
from camkit.native import cache

pytestmark = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="this system has no modes")


@pytest.fixture
def chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that `CAMKIT_CACHE` names; nothing is there."""
    monkeypatch.setenv("CAMKIT_CACHE", str(tmp_path / "above" / "mine"))
    return tmp_path / "above" / "mine"


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def made(path: Path, bits: int = 0o700) -> Path:
    path.mkdir(parents=True)
    path.chmod(bits)
    return path


def test_it_is_made_for_its_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CAMKIT_CACHE", raising=False)
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / "cache" / name)
    before = os.umask(0)
    try:
        assert cache.folder() == tmp_path.resolve() / "cache" / "camkit" == cache.folder()
    finally:
        os.umask(before)
    assert mode(tmp_path / "cache") == mode(tmp_path / "cache" / "camkit") == 0o700


def test_the_variable_moves_it(chosen: Path) -> None:
    assert cache.folder() == chosen.resolve()
    assert mode(chosen) == 0o700


def test_others_can_no_longer_look_into_it(chosen: Path) -> None:
    made(chosen, 0o755)
    cache.folder()
    assert mode(chosen) == 0o700


def test_folders_above_that_are_links_are_followed(chosen: Path, tmp_path: Path) -> None:
    made(tmp_path / "real")
    (tmp_path / "above").symlink_to(tmp_path / "real")
    assert cache.folder() == tmp_path.resolve() / "real" / "mine"


def test_a_folder_above_may_be_shared_where_nobody_can_rename_what_is_not_theirs(chosen: Path) -> None:
    made(chosen)
    chosen.parent.chmod(0o1777)
    assert cache.folder() == chosen.resolve()


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "for all": (lambda path: made(path, 0o777), "others can write into it"),
    "for all, with a sticky bit": (lambda path: made(path, 0o1777), "others can write into it"),
    "for a group": (lambda path: made(path, 0o770), "others can write into it"),
    "a link": (
        lambda path: made(path.parent) and path.symlink_to(made(path.parent / "own")),
        "it is a link",
    ),
    "a link to nowhere": (lambda path: made(path.parent) and path.symlink_to("nowhere"), "it is a link"),
    "a file": (lambda path: made(path.parent) and path.touch(), "it is no folder"),
    "below a file": (lambda path: path.parent.touch(), "Not a directory"),
    "below a loop": (lambda path: path.parent.symlink_to(path.parent), "above|[Ss]ymlink|levels"),
    "below a folder for all": (lambda path: made(path) and path.parent.chmod(0o777), "into .*above$"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_others_could_change_is_refused(case: str, chosen: Path) -> None:
    make, reason = REFUSED[case]
    make(chosen)
    with pytest.raises(CamkitError) as caught:
        cache.folder()
    said = str(caught.value)
    assert said.startswith(f"the cache folder {chosen} cannot be used (") and "CAMKIT_CACHE=FOLDER" in said
    told = said.partition("(")[2].rpartition(")")[0]
    assert re.search(reason, told), said


def test_folders_of_another_user_are_refused(chosen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(chosen)
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    with pytest.raises(CamkitError, match="belongs to another user"):
        cache.folder()
    monkeypatch.undo()
    monkeypatch.setenv("CAMKIT_CACHE", str(chosen))
    if me == 0:  # who may give folders away
        os.chown(chosen.parent, 12345, -1)
        with pytest.raises(CamkitError, match=r"above belongs to another user"):
            cache.folder()


@pytest.mark.parametrize(
    ("name", "members", "private"),
    [("me", [], True), ("me", ["me"], True), ("me", ["you"], False), ("staff", [], False)],
)
def test_a_group_of_the_user_alone_is_nobody_else(
    name: str, members: list[str], private: bool, chosen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(chosen)
    chosen.parent.chmod(0o775)
    monkeypatch.setattr("pwd.getpwuid", lambda _: SimpleNamespace(pw_name="me"))
    monkeypatch.setattr("grp.getgrgid", lambda _: SimpleNamespace(gr_name=name, gr_mem=members))
    if private:
        assert cache.folder() == chosen.resolve()
    else:
        with pytest.raises(CamkitError, match=r"write into .*above"):
            cache.folder()


def test_a_home_that_nobody_knows_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAMKIT_CACHE", "~nobody-of-that-name/cache")
    with pytest.raises(CamkitError, match=r"cannot be used"):
        cache.folder()


# --- compilers ------------------------------------------------------------------------------------


def test_compilers_are_told_and_the_environment_is_as_before(
    chosen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import codecache, config

    monkeypatch.setattr(codecache, "_HEADER_DIR", "/somewhere")
    monkeypatch.setattr(codecache, "_HEADER_LOCK_DIR", "/somewhere/locks")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/somewhere")
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    before = dict(os.environ)
    headers = config.cpp_cache_precompile_headers
    with pytest.raises(KeyError), cache.compiling():
        with cache.compiling():
            pass
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(chosen.resolve() / "inductor")
        assert os.environ["TRITON_CACHE_DIR"] == str(chosen.resolve() / "triton")
        assert str(chosen.resolve() / "headers") == codecache._HEADER_DIR
        raise KeyError
    assert dict(os.environ) == before
    assert config.cpp_cache_precompile_headers == headers


def test_a_torch_that_keeps_headers_elsewhere_gets_none(
    chosen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import codecache, config

    monkeypatch.delattr(codecache, "_HEADER_DIR")
    with cache.compiling():
        assert not config.cpp_cache_precompile_headers


def test_without_a_safe_folder_there_is_the_plain_result(
    chosen: Path, small_net: nn.Module, batch: Tensor
) -> None:
    made(chosen, 0o777)
    wanted = camkit.maps(small_net, batch, 1, layer="body")
    with pytest.warns(CamkitWarning, match=r"without fast mode: .*CAMKIT_CACHE"):
        found = camkit.maps(small_net, batch, 1, layer="body", fast=True)
    assert torch.equal(found, wanted)
    assert list(chosen.iterdir()) == []


WATCHED = """
import os, sys, warnings
shared, touched = sys.argv[1], set()

def watch(event, arguments):
    for argument in arguments[:2]:
        if isinstance(argument, str) and argument.startswith(shared):
            touched.add(f"{event} {argument}")

sys.addaudithook(watch)
import torch, camkit
from camkit.errors import CamkitWarning
from torch import nn

warnings.simplefilter("error", CamkitWarning)
torch.manual_seed(0)
net = nn.Sequential(
    nn.Conv2d(3, 64, 1), nn.Conv2d(64, 64, 3, padding=1), nn.Tanh(),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 3),
).eval()
x = torch.randn(2, 3, 16, 16)
quick, plain = (camkit.maps(net, x, 1, layer="2", fast=fast) for fast in (True, False))
assert torch.allclose(quick, plain, atol=1e-4)
from torch._inductor.runtime.cache_dir_utils import default_cache_dir  # importing it would make the folder

assert default_cache_dir() == shared
print(sorted(touched))
"""


def test_nothing_is_read_or_written_where_everybody_can(tmp_path: Path) -> None:
    """One cold compilation: of the model, of the kernel, and of the tests of what the machine can do."""
    import getpass

    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception as error:
        pytest.skip(f"no C++ compiler: {error}")
    shared = made(tmp_path / "tmp" / f"torchinductor_{getpass.getuser()}", 0o777)
    planted = made(shared / "precompiled_headers", 0o777) / "planted.h.gch"
    planted.write_bytes(b"of somebody else")
    own = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
    environment = {name: value for name, value in os.environ.items() if name not in own}
    environment |= {"TMPDIR": str(tmp_path / "tmp"), "CAMKIT_CACHE": str(tmp_path / "mine")}
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(shared)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"
    assert sorted(shared.rglob("*")) == [planted.parent, planted]
    assert len(list((tmp_path / "mine" / "inductor").rglob("*.so"))) >= 3
