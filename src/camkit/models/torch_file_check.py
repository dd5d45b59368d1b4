"""Files that `torch.save` wrote, looked at before torch reads them: they take no more memory than disk."""

from __future__ import annotations

import mmap
import os
import pickletools
import struct
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

# What the pickle of a file may call without running code, and yet fill the memory with: `bytearray`, which
# no tensor needs, and `_codecs.encode`, by which pickle writes the bytes of numpy's numbers.
_FILLER, _ENCODE = b"\nbytearray\n", "_codecs encode"
_END = 22  # bytes of the record that ends a zip; with those of a large one before it
_WIDE_END = 98


def check(path: Path) -> bool:
    """Whether the file is a zip, as they are today, and not bare pickles and tensors, as in torch 1.5.

    Raises `OSError`, `ValueError` or `zipfile.BadZipFile` with what is wrong with it.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        if file.read(4) == b"PK\3\4":  # as torch tells them apart
            for content in _pickles(file, _members(file, size)):
                _check_calls(content, content)
            return True
        if size:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
                _check_calls(whole, None)
    return False


def _check_calls(content: bytes | mmap.mmap, pickle: bytes | None) -> None:
    """`ValueError` for what makes much of little. pickle: the same, if it is one and nothing else."""
    encodes = content.find(b"encode") >= 0
    if content.find(_FILLER) >= 0 or (encodes and (pickle is None or _makes_more(pickle))):
        raise ValueError("it makes texts or bytes, which no state dict needs: refused")


def _makes_more(pickle: bytes) -> bool:
    """Whether `_codecs.encode` is called otherwise than with a text of the pickle and `latin1`.

    Every call takes its texts from the pickle, directly or by its memo, and all together are no longer.
    """
    memo: dict[Any, object] = {}
    before, last, value, length = None, None, None, 0
    for code, argument, _ in pickletools.genops(pickle):
        if "PUT" in code.name or code.name == "MEMOIZE":
            memo[len(memo) if argument is None else argument] = value
            continue
        before, last = last, value
        if "GET" in code.name:
            value = memo.get(argument)
        elif code.name == "STACK_GLOBAL":
            value = f"{before} {last}"
        else:
            value = argument if isinstance(argument, str) else None
        if last == _ENCODE:
            if not isinstance(value, str):
                return True
            length += len(value)
        if before == _ENCODE and value != "latin1":
            return True
    return length > len(pickle)


def _members(file: BinaryIO, size: int) -> list[zipfile.ZipInfo]:
    """What is in a zip, each stored as it is and of a name of its own, and all not larger than the file."""
    _check_end(file, size)
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
    names = {member.filename.casefold() for member in members}  # torch does not tell a from A
    faults = {
        "it holds compressed members": any(m.compress_type != zipfile.ZIP_STORED for m in members),
        "it holds two members of one name": len(names) < len(members),
        "its members are larger than the file": sum(m.file_size for m in members) > size,
    }
    for fault, found in faults.items():
        if found:
            raise ValueError(f"{fault}, as torch writes none: refused")
    return members


def _check_end(file: BinaryIO, size: int) -> None:
    """`ValueError` unless every reader of zips, torch's too, finds the directory that we find."""
    file.seek(max(0, size - _WIDE_END))
    end = file.read().rjust(_WIDE_END, b"\0")
    wide = end[56:60] == b"PK\6\7"
    start = size - (_WIDE_END if wide else _END)  # of the end, and so the end of the directory
    length, offset = struct.unpack("<QQ", end[40:56]) if wide else struct.unpack("<II", end[88:96])
    plain = end[76:80] == b"PK\5\6" and end[96:] == b"\0\0"
    at_its_place = not wide or (end[:4] == b"PK\6\6" and struct.unpack("<Q", end[64:72]) == (start,))
    if not (plain and at_its_place and offset + length == start):
        raise ValueError("it is no whole zip archive, as where a download or copy ended early")


def _pickles(file: BinaryIO, members: Iterable[zipfile.ZipInfo]) -> Iterator[bytes]:
    """The pickles of a zip; torch need not have written their checksums."""
    for member in members:
        if member.filename.casefold().endswith(".pkl"):
            file.seek(member.header_offset + 26)
            name, extra = struct.unpack("<HH", file.read(4))
            file.seek(name + extra, os.SEEK_CUR)
            yield file.read(member.file_size)
