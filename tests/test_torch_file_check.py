"""Weights of strangers that take more memory than disk: refused before, or where they are read."""

from __future__ import annotations

import codecs
import copy
import io
import os
import re
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from camkit.errors import ModelError
from camkit.models import torch_file_check
from camkit.models.loading import load_model
from camkit.models.weights import read_weights

COUNT = 70_000  # values, so that the pickle holds the number as four bytes


def saved(state: Any, *, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def rewritten(data: bytes, change: Callable[[zipfile.ZipFile, zipfile.ZipInfo, bytes], None]) -> bytes:
    """The zip with each member as `change` writes it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        for member in old.infolist():
            change(new, zipfile.ZipInfo(member.filename), old.read(member))
    return buffer.getvalue()


def deflated(new: zipfile.ZipFile, member: zipfile.ZipInfo, data: bytes) -> None:
    new.writestr(member, data, zipfile.ZIP_DEFLATED if "/data/" in member.filename else None)


def other_number(data: bytes, count: int) -> bytes:
    """A pickle of `PLAIN` with another number of values."""
    old, new = (b"J" + struct.pack("<i", number) for number in (COUNT, count))
    return data.replace(old, new)


def claimed(count: int) -> bytes:
    """`PLAIN` as torch writes it, but for the number of values."""
    return rewritten(
        saved(PLAIN), lambda new, member, data: new.writestr(member, other_number(data, count))
    )


def twice(new: zipfile.ZipFile, member: zipfile.ZipInfo, data: bytes) -> None:
    new.writestr(member, data)
    if "/data/" in member.filename:
        new.writestr(copy.copy(member), data)


def in_capitals(new: zipfile.ZipFile, member: zipfile.ZipInfo, data: bytes) -> None:
    new.writestr(member, data)
    if "data.pkl" in member.filename:
        new.writestr(member.filename.replace("data.pkl", "DATA.PKL"), data)


def overlapping(new: zipfile.ZipFile, member: zipfile.ZipInfo, data: bytes) -> None:
    new.writestr(member, data)
    if "/data/" in member.filename:
        for number in range(3):
            again = copy.copy(new.filelist[-1])
            again.filename = f"{member.filename}{number}"
            new.filelist.append(again)


def with_remark(data: bytes) -> bytes:
    buffer = io.BytesIO(data)
    with zipfile.ZipFile(buffer, "a") as old:
        old.comment = b"and another directory"
    return buffer.getvalue()


class Call:
    """Unpickled, it is what a function returns."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


PLAIN = {"a": torch.arange(COUNT, dtype=torch.float32)}
ONE = {"a": torch.zeros(1).expand(COUNT)}
BYTES, HEX = (
    {"a": Call(bytearray, 2**33)},
    {"a": Call(codecs.encode, Call(codecs.encode, b"ab", "hex"), "hex")},
)
HOSTILE: dict[str, tuple[str, Callable[[], bytes]]] = {
    "a compressed member": ("compressed members", lambda: rewritten(saved(PLAIN), deflated)),
    "two members of one name": ("two members of one name", lambda: rewritten(saved(PLAIN), twice)),
    "two that torch takes for one": (
        "two members of one name",
        lambda: rewritten(saved(PLAIN), in_capitals),
    ),
    "members that overlap": ("larger than the file", lambda: rewritten(saved(PLAIN), overlapping)),
    "something behind the end": ("no whole zip", lambda: with_remark(saved(PLAIN))),
    "something before the beginning": ("no whole zip", lambda: b"PK\3\4" + saved(PLAIN)),
    "one value many times": (r"a claims \[70000\] values and holds fewer", lambda: saved(ONE)),
    "the same in an old file": ("and holds fewer", lambda: saved(ONE, zipped=False)),
    "more values than in the member": ("cannot be read as weights", lambda: claimed(2**20)),
    "far more values": ("cannot be read as weights", lambda: claimed(2**30)),
    "far more in an old file": ("cannot be read", lambda: other_number(saved(PLAIN, zipped=False), 2**30)),
    "no values at all": ("no plain tensor", lambda: saved({"a": torch.zeros(2**40, device="meta")})),
    "few values of many": ("no plain tensor", lambda: saved({"a": torch.zeros(2**20, 8).to_sparse()})),
    "many bytes": ("makes texts or bytes", lambda: saved(BYTES)),
    "many bytes in an old file": ("makes texts or bytes", lambda: saved(BYTES, zipped=False)),
    "twice as many bytes": ("makes texts or bytes", lambda: saved(HEX)),
}


@pytest.mark.filterwarnings("ignore:Duplicate name", "ignore:Detected pickle protocol")
@pytest.mark.parametrize("case", HOSTILE)
def test_files_that_claim_more_than_they_are(case: str, tmp_path: Path) -> None:
    expected, content = HOSTILE[case]
    path = tmp_path / "my.pth"
    path.write_bytes(content())
    with pytest.raises(ModelError) as caught:
        read_weights(path)
    said = str(caught.value)
    assert said.startswith(str(path)) and re.search(expected, said) and "\n" not in said


@pytest.mark.parametrize("zipped", [True, False])
def test_files_as_torch_writes_them_are_read(zipped: bool, tmp_path: Path) -> None:
    whole = torch.arange(12.0)
    state = {
        "a": whole,
        "b": whole[3:5],
        "c": whole.view(3, 4).t(),
        "d": torch.zeros(0),
        "e": torch.tensor(3),
    }
    path = tmp_path / "my.pth"
    path.write_bytes(saved({"state_dict": state, "epoch": 3}, zipped=zipped))
    assert torch_file_check.check(path) == zipped
    found = read_weights(path)
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_a_head_that_a_strangers_tensor_makes_huge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("camkit.models.weights.SPARE", 0)
    state = load_model("timm:test_resnet@none").module.state_dict()
    state["fc.weight"] = torch.zeros(50_000, 1)
    path = tmp_path / "my.pth"
    path.write_bytes(saved(state))
    with pytest.raises(ModelError, match=r"far larger.* bytes"):
        load_model(f"timm:test_resnet@{path}")


def bomb(path: Path, mebibytes: int) -> None:
    """A file of a thousandth of the size of its one tensor, whose values are zero."""
    compressor = zlib.compressobj(wbits=-15)
    part = compressor.compress(bytes(2**20)) + compressor.flush(zlib.Z_FULL_FLUSH)
    with zipfile.ZipFile(io.BytesIO(claimed(mebibytes * 2**18))) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            if "/data/" not in name:
                new.writestr(name, old.read(name))
                continue
            new.writestr(name, part * mebibytes + compressor.flush())
            member = new.getinfo(name)  # as the directory will tell of it
            member.compress_type, member.file_size = zipfile.ZIP_DEFLATED, mebibytes * 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is in other units")
def test_the_peak_of_memory_stays_below_a_gibibyte(tmp_path: Path) -> None:
    bomb(tmp_path / "bomb.pth", 1024)
    assert (tmp_path / "bomb.pth").stat().st_size < 8 * 2**20
    script = (
        "import re, sys; from pathlib import Path; from camkit.models.weights import read_weights\n"
        "try: read_weights(Path(sys.argv[1]))\n"
        "except Exception as error: print(error)\n"
        "print(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "bomb.pth")],
        capture_output=True,
        text=True,
        env=os.environ,
    )
    said, kibibytes = done.stdout.splitlines()
    assert "refused" in said and int(kibibytes) < 2**20
