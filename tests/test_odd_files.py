"""A folder with everything in it: each file is explained, or reported in one line with its reason."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.fuzz import bundle, interlaced, listing, photographs

PHOTOS = photographs()

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse some of these names")


def _image(mode: str, size: tuple[int, int], format: str, **how: Any) -> Callable[[Path], object]:
    return lambda path: Image.new(mode, size).save(path, format, **how)


def _bytes(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


def _bomb(path: Path) -> None:
    """600 million pixels in 70 KiB."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", 30_000, 20_000, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(20_000 * (1 + 30_000 // 8)))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def _frames(path: Path) -> None:
    frames = [Image.new("L", (4, 4), shade % 256) for shade in range(2000)]
    frames[0].save(path, "GIF", save_all=True, append_images=frames[1:])


def _float(path: Path) -> None:
    Image.fromarray(np.zeros((8, 8), np.float32)).save(path, "TIFF")


def _link(target: str) -> Callable[[Path], object]:
    return lambda path: path.symlink_to(target)


def _folder(path: Path) -> None:
    path.mkdir()
    (path / "inside.jpg").write_bytes(PHOTOS["jpeg"])


@dataclass(frozen=True)
class Odd:
    """A file: how it is made, the reason it is refused for, if it is, and a warning, if there is one.

    also: the name in the results, if it is another.
    """

    make: Callable[[Path], Any]
    error: str = ""
    warning: str = ""
    also: str = ""


FILES: dict[bytes, Odd] = {
    **{
        f"good-{kind}.img.png".encode(): Odd(_bytes(data))
        for kind, data in PHOTOS.items()
        if "es" not in kind
    },
    b"truncated.jpg": Odd(_bytes(PHOTOS["jpeg"][:-200]), "truncated"),
    b"cut-header.png": Odd(_bytes(PHOTOS["png"][:20]), "."),
    b"empty.jpg": Odd(_bytes(b""), "empty"),
    b"wrong.png": Odd(_bytes(PHOTOS["jpeg"])),
    b"wrong.bmp": Odd(_bytes(PHOTOS["webp-alpha"])),
    b"text.jpg": Odd(_bytes(b"not an image\n"), "not an image"),
    b"zeros.jpg": Odd(_bytes(bytes(5000)), "not an image"),
    b"page.jpg": Odd(_bytes(b"<!doctype html><title>404</title>"), "a web page"),
    b"vector.png": Odd(_bytes(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "not an image"),
    # About which libtiff has something to say on its own.
    b"noisy.tiff": Odd(_bytes(PHOTOS["tiff-lzw"][:8] + bytes(4) + PHOTOS["tiff-lzw"][12:]), "decoded"),
    b"bomb.png": Odd(_bomb, "too large"),
    b"frames.gif": Odd(_frames, warning="several frames"),
    b"pages.tiff": Odd(_bytes(PHOTOS["tiff-pages"]), warning="several frames"),
    b"dot.png": Odd(_image("RGB", (1, 1), "PNG")),
    b"strip.png": Odd(_image("RGB", (30_000, 10), "PNG"), "30000 x 10"),
    b"long.png": Odd(_image("RGB", (4000, 100), "PNG")),
    b"float.tif": Odd(_float, "floating-point"),
    b"interlaced.png": Odd(_bytes(interlaced((48, 40)))),
    b"caf\xe9.jpg": Odd(_bytes(PHOTOS["jpeg"])),
    b"caf\xe9-broken.jpg": Odd(_bytes(b"x"), r"caf\\xe9-broken\.jpg is not an image"),
    "猫 und 🐱.jpg".encode(): Odd(_bytes(PHOTOS["jpeg"])),
    b"two\nlines.jpg": Odd(_bytes(PHOTOS["jpeg"])),
    b"two\nbroken\x1b[2Jlines.jpg": Odd(_bytes(b""), r"two\\nbroken\\x1b\[2Jlines\.jpg is empty"),
    b"-o.jpg": Odd(_bytes(PHOTOS["jpeg"])),
    b" .jpg": Odd(_bytes(PHOTOS["jpeg"])),
    b"CON.jpg": Odd(_bytes(PHOTOS["jpeg"])),
    b"x" * 251 + b".jpg": Odd(_bytes(PHOTOS["jpeg"])),
    b"..jpg": Odd(_bytes(PHOTOS["jpeg"])),
    b"loop.jpg": Odd(_link("loop.jpg"), "cannot be read: "),
    b"dangling.jpg": Odd(_link("nowhere.jpg"), "No such file"),
    b"fifo.jpg": Odd(lambda path: os.mkfifo(path), "not a regular file"),
    b"zero.jpg": Odd(_link("/dev/zero"), "not a regular file"),
    b"random.png": Odd(_link("/dev/urandom"), "not a regular file"),
    b"linked.jpg": Odd(_link("../elsewhere/photo.jpg")),
    b"folder.jpg": Odd(_folder, also="folder.jpg/inside.jpg"),
}


@dataclass(frozen=True)
class Told:
    """What a run came to."""

    code: int
    lines: list[dict[str, Any]]
    errors: list[str]
    out: Path
    photos: Path
    changed: bool


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    """One run on all of them, and on a folder that holds itself."""
    base = tmp_path_factory.mktemp("odd")
    photos, elsewhere, out = base / "photos", base / "elsewhere", base / "out"
    for folder in (photos, elsewhere):
        folder.mkdir()
    (elsewhere / "photo.jpg").write_bytes(PHOTOS["jpeg"])
    for name, odd in FILES.items():
        odd.make(photos / os.fsdecode(name))
    (photos / "again").symlink_to(photos)
    model = bundle(base / "net")
    before = listing(base)
    words = ("explain", photos, "--model", model, "--out", out, "--json", "--workers", 2, "--device", "cpu")
    command = [sys.executable, "-m", "camkit", *map(str, words)]
    ended = subprocess.run(command, capture_output=True, timeout=300, cwd=base)
    lines = [json.loads(line) for line in ended.stdout.decode("utf-8").splitlines()]
    errors = ended.stderr.decode("utf-8").splitlines()
    after = [entry for entry in listing(base) if not entry[0].startswith(str(out))]
    changed = after != before
    yield Told(ended.returncode, lines, errors, out, photos, changed)


def test_the_run_ends_with_the_code_for_some_failures_and_writes_nothing_elsewhere(told: Told) -> None:
    assert told.code == 3, told.errors
    assert not told.changed
    drafts = [path for path in told.out.rglob("*") if path.name.endswith(".partial")]
    assert not drafts


def test_every_file_has_exactly_one_line_in_the_manifest_which_is_utf8(told: Told) -> None:
    written = (told.out / "manifest.jsonl").read_bytes().decode("utf-8").splitlines()
    assert [json.loads(line) for line in written] == told.lines
    assert len(told.lines) == len(FILES)
    assert max(Counter(line["image"] for line in told.lines).values()) == 1


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_explained_or_refused_with_its_reason(told: Told, name: bytes) -> None:
    odd = FILES[name]
    shown = odd.also or _shown(name)
    (line,) = [line for line in told.lines if line["image"] == f"{told.photos}/{shown}"]
    errors = [text for text in told.errors if text.startswith(f"Error: {told.photos}/{shown}")]
    if odd.error:
        assert line["status"] == "error" and re.search(odd.error, line["error"])
        assert errors == [f"Error: {line['error']}"]
    else:
        assert line["status"] == "ok" and errors == []
        assert (told.out / line["map_file"]).is_file() and (told.out / line["overlay_file"]).is_file()
        assert any(odd.warning in text for text in [*line["warnings"], ""]) and bool(
            line["warnings"]
        ) >= bool(odd.warning)


def test_nothing_else_is_told_on_stderr(told: Told) -> None:
    """No traceback, and not what the libraries of image formats print on their own."""
    known = ("Error: ", "Warning: ", "Raw maps and manifest.jsonl are in ")
    rest = [text for text in told.errors if not text.startswith(known)]
    failed = sum(bool(odd.error) for odd in FILES.values())
    assert rest == [f"{len(FILES) - failed} maps done, {failed} failed"]


def _shown(name: bytes) -> str:
    """A name as it is shown: one line of UTF-8."""
    text = name.decode("utf-8", "backslashreplace")
    return text.replace("\n", "\\n").replace("\x1b", "\\x1b")
