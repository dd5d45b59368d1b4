"""Pictures in the terminal: one that can show them, one that cannot, and what is none."""

from __future__ import annotations

import os
import select
import struct
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from tests.test_cli import explain, photo

from camkit.cli import inline

pytestmark = pytest.mark.usefixtures("here")
fcntl, pty, termios = (
    pytest.importorskip(name, reason="there are no pseudo-terminals here")
    for name in ("fcntl", "pty", "termios")
)

SHOWN = """
from pathlib import Path
from camkit.cli import inline
show = inline.viewer()
if show:
    print("before", flush=True)
    show(Path("cat.png"))
    print("after")
"""
# What a terminal asks to be told: what it is, and whether it knows kitty's protocol.
WHO, KITTY = b"\x1b[c", b"\x1b_G"
SIXEL = b"\x1b[?62;4c"
NEITHER = b"\x1b[?62c"


def shown(answer: bytes, *, kitty: bool = False, columns: int = 100) -> bytes:
    """What is written into a terminal that answers so."""
    child, terminal = pty.fork()
    if not child:
        try:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 10 * columns, 800))
            os.execv(sys.executable, [sys.executable, "-c", SHOWN])
        finally:
            os._exit(9)
    seen, answered, deadline = b"", 0, time.monotonic() + 60
    while time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                part = os.read(terminal, 65536)
            except OSError:  # as it ends
                break
            if not part:
                break
            seen += part
            if seen.count(WHO) > answered:
                answered += 1
                os.write(terminal, answer)
            if kitty and KITTY in part and b"a=q" in part:
                number = part.split(b"i=")[1].split(b",")[0]
                os.write(terminal, b"\x1b_Gi=" + number + b";OK\x1b\\")
    _, status = os.waitpid(child, 0)
    assert status == 0, seen
    return seen


@pytest.fixture
def cat(here: None) -> None:
    Image.new("RGB", (40, 30), "red").save("cat.png")


@pytest.mark.usefixtures("cat")
def test_a_terminal_that_knows_sixel_gets_the_picture() -> None:
    pytest.importorskip("textual_image", reason="pip install 'camkit[terminal]'")
    seen = shown(SIXEL)
    rest = seen.partition(b"before")[2]
    assert b"\x1bP" in rest and b"#" in rest and b"after" in rest, "a sixel begins with DCS"
    assert b"Warning" not in seen


@pytest.mark.usefixtures("cat")
def test_a_terminal_that_knows_kittys_protocol_gets_the_picture() -> None:
    pytest.importorskip("textual_image", reason="pip install 'camkit[terminal]'")
    seen = shown(NEITHER, kitty=True)
    assert b"f=100" in seen.partition(b"before")[2] and b"after" in seen and b"\x1bP" not in seen


@pytest.mark.usefixtures("cat")
def test_another_terminal_gets_one_line_that_says_so() -> None:
    pytest.importorskip("textual_image", reason="pip install 'camkit[terminal]'")
    seen = shown(NEITHER)
    assert b"Warning: --inline shows no pictures: this terminal knows neither sixel nor" in seen
    assert b"before" not in seen and seen.count(b"\n") <= 2


@pytest.mark.usefixtures("cat")
def test_a_terminal_without_a_size_gets_one_line_that_says_so() -> None:
    assert b"Warning: --inline shows no pictures: the terminal does not tell" in shown(SIXEL, columns=0)


def test_a_picture_that_cannot_be_shown_is_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("textual_image", reason="pip install 'camkit[terminal]'")
    inline._show(Path("nowhere.png"))
    assert "Warning: nowhere.png cannot be shown: FileNotFoundError" in capsys.readouterr().err


def test_each_photograph_shows_its_picture_or_its_sheet(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("textual_image", reason="pip install 'camkit[terminal]'")
    pictures: list[Path] = []
    monkeypatch.setattr(inline, "_obstacle", lambda: None)
    monkeypatch.setattr(inline, "_show", pictures.append)
    photo("photos/a.png")
    photo("photos/b.png", 1)
    assert explain("photos", "--inline").exit_code == 0
    assert len(pictures) == 2 and all(path.is_file() and path.suffix == ".png" for path in pictures)
    pictures.clear()
    explain("photos", "--class", "top:2", "--inline")
    assert [path.name.endswith("sheet.png") for path in pictures] == [True, True]
    pictures.clear()
    explain("photos", "--out", "run", "--scale", "run", "--inline")
    assert len(pictures) == 2 and all(path.is_file() for path in pictures)
    pictures.clear()
    explain("photos", "--out", "quiet")
    assert pictures == [], "only if it is asked for"


def test_what_is_no_terminal_gets_a_warning_and_all_its_results() -> None:
    pytest.importorskip("textual_image", reason="pip install 'camkit[terminal]'")
    done = explain(photo("a.png"), "--inline")
    assert done.exit_code == 0 and len(list(Path("out").glob("*.png"))) == 1
    assert "Warning: --inline shows no pictures: stdin and stdout are no terminal" in done.stderr
    assert "\x1b" not in done.stdout


def test_wrong_usage_is_told_before_anything_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    photo("a.png")
    done = explain("a.png", "--inline", "--json")
    assert done.exit_code == 2 and "both write on stdout" in done.stderr
    done = explain("a.png", "--inline", "--format", "npz")
    assert done.exit_code == 2 and "none of the pictures of --inline" in done.stderr
    monkeypatch.setattr("camkit.registry.extras.find_spec", lambda name: None)
    done = explain("a.png", "--inline")
    assert done.exit_code == 2 and len(done.stderr.splitlines()) == 1
    assert "--inline needs packages that are not installed: pip install 'camkit[terminal]'" in done.stderr
    assert not Path("out").exists()
