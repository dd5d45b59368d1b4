"""Hostile input for everything that reads what a stranger wrote: accepted, or refused with a reason.

    python -m tests.fuzz                                          20000 cases, spread over all targets
    python -m tests.fuzz --target images --first 812 --cases 1    one of them again

A case fails by any other exception, by taking too long, by changing a file outside of its folder, or by a
message that a terminal cannot show; a target also by taking more than 1 GiB. Every case depends on seed,
target and number alone.
"""

from __future__ import annotations

import argparse
import atexit
import copy
import hashlib
import io
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, Literal, get_args

import click
import numpy as np
import torch
from huggingface_hub import constants as hub
from PIL import Image
from tests.conftest import runner

import camkit
from camkit.bench import conditions
from camkit.cli import cli
from camkit.contracts.model import LoadedModel
from camkit.contracts.options import option
from camkit.contracts.trainer import TrainResult
from camkit.core import layers
from camkit.core.targets import class_selector
from camkit.drawing import charts
from camkit.drawing.style import USUAL, Style
from camkit.errors import (
    CamkitError,
    ImageError,
    LayerError,
    ModelError,
    OptionError,
    TargetError,
    UsageError,
)
from camkit.explaining import embedding, manifest, merging, redrawing, repeating, stored_maps, verification
from camkit.explaining.checked_reading import Reader
from camkit.images import decoding
from camkit.images.preprocess import Preprocess
from camkit.images.shard import Shard
from camkit.images.workers import Processes
from camkit.metrics import ground_truth
from camkit.native.explainer import NativeOptions
from camkit.registry import loading, options
from camkit.training import recipe
from camkit.training import result as kept
from camkit.training.torch_trainer import Recipe, Stage, TorchTrainer

Case = Callable[[Random], None]

# --- mutations --------------------------------------------------------------------------------------

NUMBERS = (0, 1, -1, 2, 255, 256, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**63, -(10**30), 10**400)
# fmt: off
FRAGMENTS = (
    "", "\0", "\n", "\r", "\x1b[2J", "\x9b", "\ud800", "\udcff", "\u202e", "é", "²", "٣", "猫", "%s", "{}",
    "..", "/", "../", "../outside/secret.npy", "/dev/zero", "~", "*", "?", "[", "]", "[-1]", "**/*", "\\",
    "=", ":", "@", ",", ".", "-", "--", " ", '"', "'", "#", "nan", "inf", "-inf", "1e999", "true", "none",
    "null", "{", "}", "[[", "0", "-1", "1/0", "9" * 25, "9" * 5000, "(" * 300, "[" * 3000, "a" * 300,
    "a" * 100_000, "-" * 5000, "target", "model", "pred", "top:", "all", "auto",
)
# fmt: on


def odd_bytes(random: Random, data: bytes, other: bytes = b"") -> bytes:
    """`data` with a few bits, bytes, numbers or stretches changed, more often near the beginning."""
    text = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 3, 8))):
        end = len(text) if random.random() < 0.5 else min(len(text), 256)
        at, length = random.randrange(end + 1), random.choice((1, 2, 4, 16, 256, 4096))
        match random.randrange(8):
            case 0 if at < len(text):
                text[at] ^= 1 << random.randrange(8)
            case 1:
                text[at : at + length] = random.randbytes(min(length, len(text) - at))
            case 2:
                number = random.choice(NUMBERS) % 2**32
                text[at : at + 4] = struct.pack(random.choice("<>") + "I", number)
            case 3:
                number = random.choice(NUMBERS) % 2**16
                text[at : at + 2] = struct.pack(random.choice("<>") + "H", number)
            case 4:
                del text[at : at + length]
            case 5:
                text[at:at] = text[at : at + length] * random.choice((1, 2, 100))
            case 6:
                begin = random.randrange(len(other) + 1)
                text[at : at + random.choice((0, length))] = other[begin : begin + length]
            case 7 if random.random() < 0.3:
                del text[at:]
    return bytes(text)


def odd_text(random: Random, text: str, others: Sequence[str] = ()) -> str:
    """`text` with signs, fragments and parts of others put in, taken out or repeated."""
    for _ in range(random.choice((1, 1, 2, 3))):
        at = random.randrange(len(text) + 1)
        length = random.choice((0, 1, 1, 2, 5, len(text)))
        sign = chr(random.randrange(random.choice((128, 128, 0x3000))))
        new = random.choice((random.choice(FRAGMENTS), sign, ""))
        if others and random.random() < 0.3:
            new = random.choice(others)
        if random.random() < 0.1:
            new = text[at : at + length] * 3
        text = text[:at] + new + text[at + length :]
    return text


def odd_value(random: Random) -> Any:
    """A value of JSON that few expect."""
    deep: Any = 0
    for _ in range(random.choice((3, 200))):
        deep = random.choice(([deep], {"a": deep}))
    numbers = (0.5, 1e308, -1e308, float("nan"), float("inf"), *NUMBERS, *NUMBERS)
    plain = (None, True, False, [], {}, [[]], [None], {"": 0}, list(range(1000)))
    return random.choice((random.choice(plain), random.choice(numbers), random.choice(FRAGMENTS), deep))


def odd_json(random: Random, value: Any) -> Any:
    """A copy of `value` in which a few entries, at any depth, are of another type, swapped, new or gone."""
    value = copy.deepcopy(value)
    for _ in range(random.choice((1, 1, 2, 4))):
        if not (places := list(_places(value))):
            return odd_value(random)
        holder, key = random.choice(places)
        match random.randrange(6):
            case 0 | 1:
                holder[key] = odd_value(random)
            case 2 if isinstance(holder[key], str):
                holder[key] = odd_text(random, holder[key])
            case 2 if isinstance(holder[key], int | float):
                holder[key] = random.choice((-holder[key], holder[key] + 1, holder[key] * 1000, 0))
            case 3:
                there, name = random.choice(places)
                holder[key] = copy.deepcopy(there[name])
            case 4:
                del holder[key]
            case 5 if isinstance(holder, dict):
                holder[random.choice(FRAGMENTS)] = odd_value(random)
            case _:
                holder[key] = [holder[key]]
    return value


def odd_document(random: Random, value: Any) -> bytes:
    """`value` as JSON, changed before it was written, or after, or both."""
    changed = odd_json(random, value) if random.random() < 0.9 else value
    data = json.dumps(changed, ensure_ascii=random.random() < 0.7).encode("utf-8", "surrogatepass")
    if random.random() < 0.05:
        depth = random.choice((400, 900, 100_000))
        data = data.replace(b"null", b"[" * depth + b"]" * depth, 1)
    return odd_bytes(random, data, b'{"a": [1e400, "\\ud800"]}') if random.random() < 0.2 else data


def _places(value: Any, depth: int = 0) -> Iterator[tuple[Any, Any]]:
    """Every entry below `value`, as what holds it and its key."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys if depth < 20 else ():
        yield value, key
        yield from _places(value[key], depth + 1)


# --- seeds ------------------------------------------------------------------------------------------


def photographs(size: tuple[int, int] = (48, 40)) -> dict[str, bytes]:
    """The sample photograph, small, in every format and kind that camkit reads."""
    rgb = decoding.load(decoding.sample()).image.resize(size)
    grey, alpha = rgb.convert("L"), rgb.convert("RGBA")
    alpha.putalpha(grey)
    sixteen = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    turned = Image.Exif()
    turned[0x0112] = 6
    kinds: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "jpeg": (rgb, "JPEG", {}),
        "progressive": (rgb, "JPEG", {"progressive": True}),
        "turned": (rgb, "JPEG", {"exif": turned}),
        "cmyk": (rgb.convert("CMYK"), "JPEG", {}),
        "mpo": (rgb, "MPO", {"save_all": True, "append_images": [rgb.rotate(90)]}),
        "png": (rgb, "PNG", {"exif": turned}),
        "png16": (sixteen, "PNG", {}),
        "png1": (grey.convert("1"), "PNG", {}),
        "png-alpha": (alpha, "PNG", {}),
        "png-palette": (rgb.quantize(16), "PNG", {"transparency": 3}),
        "apng": (rgb, "PNG", {"save_all": True, "append_images": [rgb.rotate(90)]}),
        "webp": (rgb, "WEBP", {}),
        "webp-alpha": (alpha, "WEBP", {"lossless": True}),
        "webp-frames": (rgb, "WEBP", {"save_all": True, "append_images": [rgb.rotate(90)]}),
        "gif": (rgb, "GIF", {}),
        "gif-frames": (rgb, "GIF", {"save_all": True, "append_images": [rgb.rotate(90)] * 3}),
        "bmp": (rgb, "BMP", {}),
        "bmp-palette": (rgb.quantize(16), "BMP", {}),
        "tiff": (rgb, "TIFF", {}),
        "tiff-lzw": (rgb, "TIFF", {"compression": "tiff_lzw"}),
        "tiff16": (sixteen, "TIFF", {}),
        "tiff-pages": (rgb, "TIFF", {"save_all": True, "append_images": [rgb.rotate(90)]}),
        "ppm": (rgb, "PPM", {}),
        "pgm": (grey, "PPM", {}),
        "pbm": (grey.convert("1"), "PPM", {}),
    }
    seeds = {}
    for name, (image, format, how) in kinds.items():
        buffer = io.BytesIO()
        image.save(buffer, format, **how)
        seeds[name] = buffer.getvalue()
    return seeds | {"png-interlaced": interlaced(size), "ppm-text": b"P3 2 1 255 1 2 3 4 5 6\n"}


def interlaced(size: tuple[int, int]) -> bytes:
    """A grey PNG in Adam7's seven passes, which Pillow only reads."""
    width, height = size
    passes = (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    )
    rows = b"".join(
        bytes(1 + len(range(x, width, dx))) for x, y, dx, dy in passes for _ in range(y, height, dy)
    )
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 1)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, body) for name, body in chunks)


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def with_right_checksums(data: bytes) -> bytes:
    """A PNG whose chunks pass their check, so that what stands in them is looked at."""
    parts, at = [data[:8]], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        parts.append(_chunk(data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return b"".join(parts)


def bundle(folder: Path) -> Path:
    """A small model on the disk."""
    architecture = {"source": "timm", "name": "test_resnet", "num_classes": 3}
    module = loading.make("model", "timm").build(architecture)
    facts = {"name": "net", "default_layer": "layer4", "architecture": architecture}
    model = LoadedModel(module.eval(), ("cat", "Maine Coon", "dog"), Preprocess((64, 64)), **facts)
    return camkit.save_bundle(model, folder)


def results(folder: Path) -> dict[str, Path]:
    """What `camkit explain` writes of two photographs, in every format."""
    model, photos = bundle(folder / "net"), folder / "photos"
    photos.mkdir()
    for name in ("jpeg", "png-alpha"):
        (photos / f"{name}.jpg").write_bytes(photographs()[name])
    made = {}
    for format in ("png", "npz", "parquet"):
        made[format] = folder / format
        out = ("--out", made[format], "--format", format)
        command(
            "explain", photos, "--model", model, "--class", "cat", "--class", "dog", "--workers", 0, *out
        )
    return made


def command(*words: object) -> None:
    """Run `camkit`; whatever it would tell as one line is raised, and so is any code but 0."""
    result = runner().invoke(cli, ["--debug", *map(str, words)], catch_exceptions=False)
    assert result.exit_code in (0, 1, 2, 3), result.exit_code
    assert not _unsayable(result.output), result.output
    if result.exit_code:
        raise CamkitError(f"exit code {result.exit_code}")


# --- targets ----------------------------------------------------------------------------------------


def _images(box: Path) -> Case:
    seeds, path = photographs(), box / "x.jpg"
    np.save(array := io.BytesIO(), np.zeros((40, 48, 3), np.uint8))
    seeds["npy"] = array.getvalue()

    def case(random: Random) -> None:
        name, other = random.choices(list(seeds), k=2)
        data = odd_bytes(random, seeds[name], seeds[other])
        path.write_bytes(with_right_checksums(data) if "png" in name and random.random() < 0.7 else data)
        photo = decoding.load(path)
        assert photo.image.mode == "RGB" and min(photo.image.size) > 0

    return case


def _pictures(box: Path) -> Case:
    """What a picture tells of itself, and the command that makes it again."""
    line = _lines(results(box)["png"])[0]
    picture, path = Image.new("RGB", (24, 16)), box / "x.png"
    formats: tuple[embedding.ImageFormat, ...] = get_args(embedding.ImageFormat)

    def case(random: Random) -> None:
        format, count = random.choice(formats), random.choice((1, 1, 3))
        told = [odd_json(random, copy.deepcopy(line)) if random.random() < 0.7 else line] * count
        try:
            data = embedding.encoded(picture, format, [one for one in told if isinstance(one, dict)])
        except (ValueError, IndexError):  # numbers that JSON has not, and no lines: what no camkit writes
            data = embedding.encoded(picture, format, [line])
        if random.random() < 0.5:
            data = odd_bytes(random, data)
            data = with_right_checksums(data) if format == "png" and random.random() < 0.7 else data
        path.write_bytes(data)
        lines = embedding.read(path)
        assert repeating.command(lines).startswith("camkit explain ")
        repeating.lacks(lines)

    return case


def _masks(box: Path) -> Case:
    seeds, path = photographs(), box / "x.png"
    seeds = {
        name: seeds[name]
        for name in ("png1", "png16", "png-palette", "gif", "bmp-palette", "tiff16", "pgm")
    }

    def case(random: Random) -> None:
        name, other = random.choices(list(seeds), k=2)
        data = odd_bytes(random, seeds[name], seeds[other])
        path.write_bytes(with_right_checksums(data) if "png" in name and random.random() < 0.7 else data)
        assert decoding.load_mask(path).ndim == 2

    return case


def _config(box: Path) -> Case:
    folder = bundle(box / "net")
    path = folder / "camkit.json"
    seed = json.loads(path.read_bytes())

    def case(random: Random) -> None:
        path.write_bytes(odd_document(random, seed))
        camkit.load_model(folder, device="cpu")

    return case


def _weights(box: Path) -> Case:
    folder = bundle(box / "net")
    path = folder / "model.safetensors"
    seed = path.read_bytes()
    end = 8 + int.from_bytes(seed[:8], "little")
    header = json.loads(seed[8:end])

    def case(random: Random) -> None:
        data = odd_document(random, header) if random.random() < 0.6 else seed[8:end]
        data = struct.pack("<Q", len(data)) + data + seed[end:]
        path.write_bytes(odd_bytes(random, data, seed) if random.random() < 0.5 else data)
        camkit.load_model(folder, device="cpu")

    return case


def _folder(work: Callable[[Path, Path, Random], None]) -> Callable[[Path], Case]:
    """A target that is given a folder of results with a damaged manifest, or damaged or forged maps."""

    def make(box: Path) -> Case:
        made, folder, out = results(box), box / "folder", box / "out"
        processes().call(len, "", name="nothing")  # it has started before the first case

        def case(random: Random) -> None:
            for path in (folder, out):
                shutil.rmtree(path, ignore_errors=True)
            shutil.copytree(made[random.choice(list(made))], folder)
            for damage in random.sample(DAMAGES, random.choice((1, 1, 2, 3))):
                damage(folder, random)
            if random.random() < 0.2:
                _plant(folder, random)
            work(folder, out, random)

        return case

    return make


def _damage_lines(folder: Path, random: Random) -> None:
    changed = [
        odd_document(random, line) if random.random() < 0.5 else json.dumps(line).encode()
        for line in _lines(folder)
    ]
    (folder / manifest.NAME).write_bytes(b"\n".join([*changed, b""][: random.choice((None, 2))]))


def _damage_map(folder: Path, random: Random) -> None:
    files = (path for path in folder.rglob("*") if path.is_file() and "manifest" not in path.name)
    path = random.choice(sorted(files))
    path.write_bytes(odd_bytes(random, path.read_bytes(), path.read_bytes()))


def _forge_map(folder: Path, random: Random) -> None:
    """A map of any shape and values, of which the manifest gives the right hash."""
    shape = random.choice(((0, 3), (1, 1), (1, 5000), (3, 3), (300, 2), (2, 2)))
    values = np.full(shape, random.choice((0, 1e38, 1e-40, float("nan"), float("inf"))), np.float32)
    values[: random.randrange(2)] += 1
    dtype = random.choice(("<f4", ">f4", "<f8", "<f2", "<i8", "<c8", "U5", "?"))
    np.save(folder / "forged.npy", values.astype(dtype))
    forged = {
        "map_file": "forged.npy",
        "map_shape": list(shape),
        "map_sha256": stored_maps.map_digest(values),
    }
    _tell(folder, [line | forged for line in _lines(folder)])


def _forge_archive(folder: Path, random: Random) -> None:
    """An archive of maps with a member twice, or one that is larger than it says, or packed."""
    lines = _lines(folder)
    line = random.choice(lines)
    shape, packed = random.choice((((2, 2), zipfile.ZIP_STORED), ((9000, 9000), zipfile.ZIP_DEFLATED)))
    rows = (shape[0] if random.random() < 0.7 else 0 for _ in range(random.choice((1, 2))))
    data = _archive(f"{line['map_key']}.npy", shape, packed, tuple(rows))
    (folder / "forged.npz").write_bytes(odd_bytes(random, data) if random.random() < 0.5 else data)
    _tell(folder, [line | {"map_file": "forged.npz", "map_shape": list(shape)}, *lines])


@cache  # to pack 300 MB takes longer than all that is done with them
def _archive(name: str, shape: tuple[int, int], packed: int, members: tuple[int, ...]) -> bytes:
    """A zip file of members of one name: maps of that shape, of which so many rows are there."""
    data = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(data, "w", packed, compresslevel=1) as archive:
        warnings.simplefilter("ignore")  # of the second of that name
        for rows in members:
            with archive.open(name, "w") as member:
                header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(member, header)
                for _ in range(rows):
                    member.write(bytes(4 * shape[1]))
    return data.getvalue()


def _flip_table(folder: Path, random: Random) -> None:
    """A table with a few bits changed, more often in its footer, under the name that its hash gives it."""
    for path in folder.glob("*.parquet"):
        data = path.read_bytes()
        at = len(data) - random.choice((len(data), 2000, 500))
        data = data[:at] + odd_bytes(random, data[at:])
        name = f"maps-{hashlib.sha256(data).hexdigest()[:16]}.parquet"
        path.rename(folder / name).write_bytes(data)
        _tell(folder, [line | {"map_file": name} for line in _lines(folder)])


def _ask_much(folder: Path, random: Random) -> None:
    """Lines that want far too much done, or done with what never ends."""
    number, place = random.choice(NUMBERS), random.choice(("/dev/zero", "/proc/kmsg", "/", "", "\0"))
    asked = random.choice(
        (
            {"preprocessing": {"size": [number, 8192], "resize": number}},
            {"preprocessing": {"size": [8192, 8192]}},
            {"options": {"steps": number}},
            {"options": {"batch_size": number, "comparisons": number}, "method": "ablationcam"},
            {"image_path": place, "image": place},
            {"image_name": place},
            {"class_index": number},
            {"layer": "*"},
            {"dtype": random.choice(("float16", "float64"))},
        )
    )
    _tell(folder, [line | asked for line in _lines(folder)])


def _plant(folder: Path, random: Random) -> None:
    """A link, a pipe or a folder in the place of a file."""
    path = random.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    path.unlink()
    match random.randrange(4):
        case 0:
            path.symlink_to(random.choice(("/dev/zero", "../../outside/secret.npy", path.name, "/")))
        case 1:
            os.mkfifo(path)
        case 2:
            path.mkdir()
        case 3:
            path.write_bytes(b"")


def _lines(folder: Path) -> list[dict[str, Any]]:
    """The lines of a manifest that are still JSON."""
    found = []
    for line in (folder / manifest.NAME).read_bytes().splitlines():
        with suppress(ValueError, RecursionError):
            found += [parsed for parsed in (json.loads(line),) if isinstance(parsed, dict)]
    return found or [dict.fromkeys(manifest.FIELDS)]


def _tell(folder: Path, lines: Sequence[dict[str, Any]]) -> None:
    path = folder / manifest.NAME
    path.write_bytes(b"".join(json.dumps(line).encode() + b"\n" for line in lines))


DAMAGES = (_forge_map, _forge_archive, _flip_table, _ask_much, _damage_map, _damage_lines)


@cache
def processes() -> Processes:
    """One that reads for all cases."""
    pool = Processes(1, seconds=5)
    atexit.register(pool.stop)
    return pool


def _read(folder: Path, out: Path, random: Random) -> None:
    manifest.Done(folder, "")
    reader = Reader(processes())
    for line in manifest.latest(folder):
        if line["status"] == "ok":
            reader.map(folder, line)


def _verify(folder: Path, out: Path, random: Random) -> None:
    sample = random.choice((0, 1, 2))
    if random.random() < 0.05:
        command("verify", folder, "--sample", sample)
    elif findings := verification.verify(folder, sample=sample, processes=processes()).findings:
        raise CamkitError(findings[0].reason)


def _render(folder: Path, out: Path, random: Random) -> None:
    look = random.choice(list(USUAL))
    scale: Literal["image", "run"] = "run" if look == "contour" and random.random() < 0.5 else "image"
    if random.random() < 0.05:
        command("render", folder, "--look", look, "--scale", scale)
        return
    drawn = redrawing.redraw(folder, style=Style(look=look, scale=scale), processes=processes())
    for error in [error for _, error in drawn if error is not None]:
        raise error


def _merge(folder: Path, out: Path, random: Random) -> None:
    # Through a link that was planted the damage would be done elsewhere.
    plain = all(path.is_file() and not path.is_symlink() for path in folder.iterdir())
    if random.random() < 0.5 and plain:
        shutil.copytree(folder, out)
        (out / manifest.NAME).unlink()
        _damage_map(folder, random)
    if random.random() < 0.05:
        command("explain", "merge", folder, "--out", out)
    elif findings := merging.merge([folder], out, processes=processes()).findings:
        raise CamkitError(findings[0].reason)
    assert not any(path.is_symlink() for path in out.rglob("*"))


def _recipes(box: Path) -> Case:
    seeds = [path.read_text() for path in TorchTrainer.recipes.values()]
    path, trainer = box / "recipe.toml", loading.make("trainer", "torch")
    parts = (
        "[[stages]]\n",
        "a.b.c = 1\n",
        "x = 1979-05-27T07:32:00Z\n",
        "epochs = 1e9\n",
        "lr = nan\n",
        "stages = 1\n",
    )

    def case(random: Random) -> None:
        data = odd_text(random, random.choice(seeds), parts).encode("utf-8", "surrogatepass")
        path.write_bytes(odd_bytes(random, data) if random.random() < 0.2 else data)
        recipe.read(recipe.table(trainer, path), Recipe, Stage)

    return case


@dataclass(frozen=True)
class Everything:
    """An option of every type."""

    count: int = option(1, min=1, max=100, help="a number")
    share: float = option(0.5, min=0.0, max=1.0, help="a share")
    some: int | None = option(None, help="a number or none")
    kind: Literal["a", "b", 3] = option("a", help="one of three")
    text: str = option("", help="anything")
    flag: bool = option(False, help="yes or no")


def _options(box: Path) -> Case:
    seeds = (
        "reduction=mean",
        "count=3",
        "share=0.25",
        "some=none",
        "kind=3",
        "flag=yes",
        "text=a=b",
        "fast=true",
    )
    owners = {"native": NativeOptions, "everything": Everything}

    def case(random: Random) -> None:
        texts = [odd_text(random, text, seeds) for text in random.choices(seeds, k=random.randint(1, 3))]
        options.share_options(owners, options.parse_assignments(tuple(texts)))

    return case


def _texts(seeds: Sequence[str], read: Callable[[str], object]) -> Callable[[Path], Case]:
    """A target that is given a text."""

    def case(random: Random) -> None:
        read(odd_text(random, random.choice(seeds), seeds))

    return lambda box: case


def _classes(text: str) -> None:
    names = ("cat", "Maine Coon", "maine_coon", "9", "dog", "", "猫")
    chosen = class_selector([text], names)(torch.arange(14.0).reshape(2, 7))
    assert chosen.shape[0] == 2 and int(chosen.min()) >= 0 and int(chosen.max()) < 7


def _layers(text: str) -> None:
    blocks = torch.nn.Sequential(*(torch.nn.Sequential(torch.nn.ReLU(), torch.nn.ReLU()) for _ in range(3)))
    assert layers.find(torch.nn.ModuleDict({"layer4": blocks, "head": torch.nn.ReLU()}), text)


def _parts(text: str) -> None:
    assert Shard.parse(text).holds("a.jpg") in (True, False)


def _specs(box: Path) -> Case:
    seeds = ["pets", "timm:test_resnet@none", "torchvision:squeezenet1_1@none", "imagenet", "fastai:a.pkl"]
    seeds += [
        str(bundle(box / "net")),
        f"timm:test_resnet@{box / 'net' / 'model.safetensors'}",
        "fastai:resnet18@x",
    ]

    def case(random: Random) -> None:
        with no_network():
            camkit.load_model(odd_text(random, random.choice(seeds), seeds), device="cpu")

    return case


def _conditions(text: str) -> None:
    values = {"native.gradcam.ratio": 1.1, "native.gradcam.ms": None, "captum.gradcam.ms": float("nan")}
    condition = conditions.parse(text)
    condition.check(values)
    condition.with_figures(values) if condition.holds(values) else None


def _coco(box: Path) -> Case:
    outline = [[1.5, 2.0, 30.0, 4.0, 20.0, 35.5], [1, 1, 5, 1, 5, 5]]
    annotations = [{"image_id": 1, "segmentation": outline}, {"image_id": 1, "bbox": [3, 4.5, 20, 10]}]
    seed = {"images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}]}
    seed["annotations"] = annotations
    path = box / "coco.json"

    def case(random: Random) -> None:
        path.write_bytes(odd_document(random, seed))
        mask = ground_truth.read(path)(Path("a.jpg"), (48, 40))
        assert mask is None or mask.shape == (40, 48)

    return case


def _voc(box: Path) -> Case:
    (box / "xmls").mkdir()
    path = box / "xmls" / "a.xml"
    edges = "".join(
        f"<{edge}>{9 * n}</{edge}>" for n, edge in enumerate(("xmin", "ymin", "xmax", "ymax"), 1)
    )
    seed = f"<annotation><object><name>cat</name><bndbox>{edges}</bndbox></object></annotation>"
    parts = (
        "<!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/hostname'>]>",
        "&b;",
        "&#0;",
        "<bndbox>",
        "1e999",
        "nan",
    )

    def case(random: Random) -> None:
        data = odd_text(random, seed, parts).encode("utf-8", "surrogatepass")
        path.write_bytes(odd_bytes(random, data) if random.random() < 0.2 else data)
        mask = ground_truth.read(box)(Path("a.jpg"), (48, 40))
        assert mask is not None and mask.shape == (40, 48)

    return case


def _results(box: Path) -> Case:
    """What a training came to, of which a report is made; figures of it, too, are drawn."""
    data, whole, out = box / "data", box / "whole", box / "out"
    bundle(whole / kept.BUNDLE)
    photos = []
    for name, kind in (("cat", "jpeg"), ("dog", "png"), ("Maine Coon", "webp")):
        photos.append((data / name / f"{kind}.jpg", name))
        photos[-1][0].parent.mkdir(parents=True)
        photos[-1][0].write_bytes(photographs()[kind])
    epoch = {"train_loss": 0.5, "valid_loss": 0.7, "error_rate": 0.1}
    step = {"lr": 1e-3, "momentum": 0.9, "loss": 2.0}
    result = TrainResult(whole / kept.BUNDLE, epoch, (epoch,) * 3, (step,) * 4, tuple(photos))
    seed = json.loads(kept.write(result, data, {"seed": "0" * 64}).read_bytes())

    def case(random: Random) -> None:
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(whole, out)
        (out / kept.NAME).write_bytes(odd_document(random, seed))
        if random.random() < 0.1:
            _plant(out, random)
        if random.random() < 0.1:
            command("train", "report", out)
            return
        found = kept.read(out, random.choice((None, data)))
        found.gone()
        charts.curves(found.result.history, found.result.steps)

    return case


def _bench(box: Path) -> Case:
    photo = box / "a.jpg"
    photo.write_bytes(photographs()["jpeg"])
    chosen = ("--model", bundle(box / "net"), "--backend", "native", "--images", photo, "--batch-size", 1)
    command(
        "bench",
        "--quick",
        "--rounds",
        5,
        "--metrics",
        "latency,spearman,deletion",
        *chosen,
        "--out",
        box / "b",
    )
    seed = json.loads((box / "b" / "bench.json").read_bytes())
    before, folder = box / "b" / "bench.json", box / "folder"

    def case(random: Random) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "examples").mkdir()
        for path in (box / "b").glob("examples/*"):
            (folder / "examples" / path.name).write_bytes(odd_bytes(random, path.read_bytes()))
        (folder / "bench.json").write_bytes(odd_document(random, seed))
        if random.random() < 0.3:
            _plant(folder, random)
        pair = random.sample((before, folder), 2)
        words = ("report", folder) if random.random() < 0.4 else ("compare", *pair)
        command("bench", *words, *(("--force",) if words[0] == "compare" else ()))

    return case


def _commands(box: Path) -> Case:
    """`camkit explain` with odd options, but for where it writes and how many processes it starts."""
    photos = box / "photos"
    photos.mkdir()
    (photos / "a.jpg").write_bytes(photographs()["jpeg"])
    fixed = (photos, "--out", box / "out", "--workers", 0, "--model", bundle(box / "net"))
    given = {
        "--class": ("pred", "top:2", "all", "cat", "1", "Maine Coon"),
        "--layer": ("auto", "layer4", "layer4.-1", "layer4[-1]", "layer*.0"),
        "--method": ("gradcam", "layercam"),
        "--backend": ("native", "camkit:native"),
        "-o": ("reduction=mean", "fast=false"),
        "--shard": ("1/1", "1/2"),
        "--alpha": ("0.5", "1"),
        "--cmap": ("magma", "viridis"),
        "--device": ("cpu", "auto"),
        "--batch-size": ("1", "16"),
        "--view": ("model", "original"),
        "--look": ("default", "lesson", "contour", "spotlight"),
        "--scale": ("image", "run", "0.5"),
        "--image-size": ("64", "640"),
        "--image-format": ("png", "jpeg", "webp"),
        "--format": ("png", "npz", "parquet"),
    }

    def case(random: Random) -> None:
        shutil.rmtree(box / "out", ignore_errors=True)
        words = []
        for name in random.choices(list(given), k=random.randint(1, 3)):
            text = random.choice(given[name])
            words += [name, odd_text(random, text, given[name]) if random.random() < 0.7 else text]
        words = ["".join(sign for sign in word if sign.isprintable()) for word in words]
        command("explain", *fixed, *words)

    return case


@dataclass(frozen=True)
class Target:
    """What is tried: prepared once in a folder of its own.

    refusals: what it may raise. share: of the cases. seconds: for one case. typed: the input is the user's
    own words, which messages may repeat as they are.
    """

    make: Callable[[Path], Case]
    refusals: tuple[type[Exception], ...]
    share: float = 1.0
    seconds: float = 10.0
    typed: bool = False


MEMORY = 1024  # MiB
SEVERAL = (CamkitError, click.ClickException)
TARGETS = {
    "images": Target(_images, (ImageError,), 6),
    "pictures": Target(_pictures, (CamkitError,), 2),
    "masks": Target(_masks, (ImageError,), 2),
    "bundle": Target(_config, (ModelError,), 2),
    "weights": Target(_weights, (ModelError,), 2),
    "manifest": Target(_folder(_read), (CamkitError,), 2),
    "verify": Target(_folder(_verify), SEVERAL, 1, 20),
    "render": Target(_folder(_render), SEVERAL, 1, 20),
    "merge": Target(_folder(_merge), SEVERAL, 1, 20),
    "recipes": Target(_recipes, (UsageError,), 2),
    "options": Target(_options, (OptionError,), 3),
    "classes": Target(
        _texts(("pred", "all", "top:3", "Maine Coon", "9", "cat", "12"), _classes), (TargetError,), 2
    ),
    "layers": Target(
        _texts(("layer4", "layer4.-1", "layer4[-1]", "layer*.0", "head"), _layers), (LayerError,), 2
    ),
    "shards": Target(_texts(("1/1", "2/4", "17/1000"), _parts), (UsageError,), 2),
    "specs": Target(_specs, (CamkitError,), 0.5, 30, typed=True),
    "conditions": Target(
        _texts(
            (
                "native.gradcam.ratio > 1.2",
                "1 <= native.gradcam.ms < 3 or captum.gradcam.ms != -1e3",
                " and ",
                "not ",
            ),
            _conditions,
        ),
        (CamkitError,),
        3,
    ),
    "coco": Target(_coco, (UsageError,), 1),
    "voc": Target(_voc, (UsageError,), 1),
    "results": Target(_results, SEVERAL, 0.5, 30),
    "bench": Target(_bench, SEVERAL, 0.5, 30),
    "commands": Target(_commands, SEVERAL, 0.5, 30, typed=True),
}


# --- a run ------------------------------------------------------------------------------------------


class TooLong(BaseException):
    """Not an `Exception`, because those are caught where files are read."""


@dataclass
class Outcome:
    """What became of the cases of a target. failures: number of the first case and the reason, by place."""

    target: str
    seed: int
    accepted: int = 0
    refused: int = 0
    failed: int = 0
    slowest: tuple[float, int] = (0.0, 0)
    peak: int = 0  # MiB that the process had at most
    failures: dict[str, tuple[int, str]] = field(default_factory=dict)

    def row(self) -> str:
        """A line of the table, and two for each kind of failure."""
        counts = (self.accepted + self.refused + self.failed, self.accepted, self.refused, self.failed)
        seconds, number = self.slowest
        text = "{:12}{:8}{:10}{:9}{:8}{:7}".format(self.target, *counts, self.peak)
        text += f"  {seconds:6.2f} s ({number})"
        for place, (number, reason) in self.failures.items():
            again = (
                f"python -m tests.fuzz --target {self.target} --seed {self.seed} --first {number} --cases 1"
            )
            text += f"\n    {reason} at {place}\n    {again}"
        return text


HEADER = f"{'TARGET':12}{'CASES':>8}{'ACCEPTED':>10}{'REFUSED':>9}{'FAILED':>8}{'MIB':>7}  SLOWEST (CASE)"


def fuzz(name: str, folder: Path, *, cases: int, seed: int = 0, first: int = 0) -> Outcome:
    """Cases `first` and following of a target, in `folder/box`; nothing else in `folder` may change."""
    target, outcome, box = TARGETS[name], Outcome(name, seed), folder / "box"
    outside = folder / "outside"
    for path in (box, outside):
        path.mkdir()
    np.save(outside / "secret.npy", np.ones((1, 1), np.float32))
    case, before = target.make(box), listing(folder)
    for number in range(first, first + cases):
        begun = time.monotonic()
        try:
            with time_limit(target.seconds), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                case(Random(f"{seed} {name} {number}"))
            outcome.accepted += 1
        except target.refusals as error:
            outcome.refused += 1
            if not target.typed and (problem := _unsayable(str(error))):
                _fail(outcome, number, problem, _place(error))
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            _fail(outcome, number, repr(error)[:200], _place(error))
        outcome.slowest = max(outcome.slowest, (time.monotonic() - begun, number))
        if listing(folder) != before:
            _fail(outcome, number, "it changed files outside of its folder", name)
            before = listing(folder)
    outcome.peak = peak()
    return outcome


def peak() -> int:
    """The most memory that the process ever had, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # the other figure begins with what the process had that started this one
        return next(
            int(line.split()[1]) >> 10 for line in status.read_text().splitlines() if "VmHWM" in line
        )
    import resource  # Windows has none

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(used) >> (20 if sys.platform == "darwin" else 10)


def _fail(outcome: Outcome, number: int, reason: str, place: str) -> None:
    outcome.failed += 1
    outcome.failures.setdefault(place, (number, reason))


def _place(error: BaseException) -> str:
    """The line of camkit where it was raised, or of whatever was called last."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if f"{os.sep}camkit{os.sep}" in frame.filename]
    frame = (own or frames)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno} ({frames[-1].name})"


def _unsayable(message: str) -> str:
    try:
        message.encode()
    except UnicodeEncodeError:
        return "its message is no UTF-8"
    return "its message holds control characters" if set(message) & {"\0", "\x1b", "\x9b"} else ""


def listing(folder: Path) -> list[tuple[str, int, str]]:
    """Everything in `folder` but the box: path, mode and hash."""
    top = [path for path in sorted(folder.iterdir()) if path.name != "box"]
    paths = [*top, *(inner for path in top if path.is_dir() for inner in sorted(path.rglob("*")))]
    return [(str(path), path.lstat().st_mode, _hash(path)) for path in paths]


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """`TooLong` after so many seconds of the clock."""

    def stop(*_: Any) -> None:
        raise TooLong(f"longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def no_network() -> Iterator[None]:
    """Every connection is refused at once, by a proxy that is not there, and the hub is not asked again."""
    names = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
    before, offline = {name: os.environ.get(name) for name in names}, hub.HF_HUB_OFFLINE
    os.environ.update(dict.fromkeys(names, "http://127.0.0.1:9"))
    hub.HF_HUB_OFFLINE = True  # the variable of that name was read long ago
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE = offline
        for name, value in before.items():
            os.environ.pop(name)
            os.environ.update({} if value is None else {name: value})


def main() -> int:
    """All targets, each in a process of its own, which may crash; 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--cases", type=int, default=20_000, help="of all targets together, or of the one named"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=TARGETS)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if given.target:
            outcome = fuzz(
                given.target, Path(folder), cases=given.cases, seed=given.seed, first=given.first
            )
            print(outcome.row())
            return 1 if outcome.failed or outcome.peak > MEMORY else 0
    print(HEADER, flush=True)
    total = sum(target.share for target in TARGETS.values())
    codes = []
    for name, target in TARGETS.items():
        count = round(given.cases * target.share / total)
        words = ("--target", name, "--seed", given.seed, "--first", given.first, "--cases", count)
        command = [sys.executable, "-X", "faulthandler", "-m", "tests.fuzz", *map(str, words)]
        ended = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace")
        codes.append(ended.returncode)
        if ended.returncode not in (0, 1):
            print(f"{name:12} the process ended with {ended.returncode}:\n{ended.stderr[-3000:]}")
    return 1 if any(codes) else 0


if __name__ == "__main__":
    sys.exit(main())
