"""What `camkit explain` writes: overlays, raw maps, side-by-side sheets and the manifest.

Every file is written under a temporary name and then renamed, so it is there whole or not at all.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

import camkit
from camkit import plugins
from camkit.errors import CamkitError
from camkit.explanation import Explanation, Failure, View
from camkit.render import Panel, Style, extent, is_flat, sheet, signed

SCHEMA = 1
MANIFEST = "manifest.jsonl"
MAX_SHEET_ROWS = 8
MAX_NAME_BYTES = 120  # of one part of a file name
MAX_STEM_BYTES = 240  # of all parts; file systems take 255 with the suffix

FIELDS = (
    "schema image image_sha256 status error backend backend_dist backend_version method options layer "
    "class_index class_name probability logit predicted_index predicted_name map_file map_shape "
    "overlay_file picture model model_sha256 preprocessing camkit_version torch_version device dtype "
    "warnings"
).split()


class Output:
    """A folder that explanations are written into.

    Later lines of the manifest supersede earlier ones with the same `map_file`: a folder may collect
    the results of several calls.
    """

    def __init__(self, folder: Path, *, style: Style, view: View, several_layers: bool) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CamkitError(f"cannot write into {folder}: {error.strerror}") from None
        self.folder = folder
        self._style = style
        self._view: View = view
        self._several_layers = several_layers
        self._names: dict[int, str] = {}
        self._taken: set[str] = set()

    def write(self, result: Explanation | Failure) -> dict[str, Any]:
        """Write the files of one result; its manifest line."""
        line: dict[str, Any] = dict.fromkeys(FIELDS) | _facts(result)
        if isinstance(result, Explanation):
            stem = shortened(".".join([self._name(result), *self._parts(result)]), MAX_STEM_BYTES)
            line |= {"map_file": f"{stem}.npy", "overlay_file": f"{stem}.png"}
            line["picture"] = {"view": self._view, **asdict(self._style)}
            line["warnings"] += self._notes(result)
            array = result.map.numpy()
            self._put(f"{stem}.npy", lambda file: np.save(file, array))
            picture = result.overlay(view=self._view, style=self._style)
            self._put(f"{stem}.png", lambda file: picture.save(file, "PNG"))
        with _writing(self.folder / MANIFEST) as path, path.open("a", encoding="utf-8") as manifest:
            manifest.write(as_json(line) + "\n")
        return line

    def write_sheet(self, results: Sequence[Explanation]) -> Path | None:
        """The maps of one photograph side by side, a row for each class; nothing if there is only one.

        Backends share the colour scale of a method, so that a difference can be seen. Of many classes the
        first eight are shown.
        """
        columns = list(dict.fromkeys((r.backend, r.method, r.layer) for r in results))
        if len(columns) < 2:
            return None
        rows: dict[int, list[Panel]] = {}
        scales = self._scales(results)
        for result in results:
            title = f"{result.backend} · {result.method} · {result.layer}\n"
            title += f"{result.class_name} {result.probability:.1%}"
            if result.class_index in rows or len(rows) < MAX_SHEET_ROWS:
                scale = scales[result.method, result.layer, result.class_index]
                picture = result.overlay(view=self._view, style=self._style, scale=scale)
                rows.setdefault(result.class_index, []).append(Panel(title, picture))
        name = f"{self._name(results[0])}.sheet.png"
        picture = sheet(list(rows.values()), Path(results[0].photo.source).name)
        self._put(name, lambda file: picture.save(file, "PNG"))
        return self.folder / name

    def _notes(self, result: Explanation) -> list[str]:
        """What the picture cannot show, although the map has something to say."""
        if is_flat(result.map) or not is_flat(signed(result.map, self._style)):
            return []
        side = "against" if self._style.counterfactual else "for"
        name = f"{result.backend} {result.method}"
        return [f"the picture is flat: {name} finds nothing that speaks {side} {result.class_name}"]

    def _scales(self, results: Sequence[Explanation]) -> dict[tuple[str, str, int], tuple[float, float]]:
        maps: dict[tuple[str, str, int], list[torch.Tensor]] = {}
        for r in results:
            maps.setdefault((r.method, r.layer, r.class_index), []).append(signed(r.map, self._style))
        return {key: extent(group) for key, group in maps.items()}

    def _name(self, result: Explanation) -> str:
        """The file name of the photograph, made unique within this output."""
        if result.position not in self._names:
            name = slug(Path(result.photo.source).name) or "image"
            unique, count = name, 1
            while unique in self._taken:
                count += 1
                unique = f"{name}~{count}"
            self._taken.add(unique)
            self._names[result.position] = unique
        return self._names[result.position]

    def _parts(self, result: Explanation) -> list[str]:
        name = class_slugs(tuple(result.model.classes))[result.class_index]
        parts = [slug(result.backend), slug(result.method), name]
        return [*parts, slug(result.layer)] if self._several_layers else parts

    def _put(self, name: str, write: Callable[[io.BytesIO], object]) -> None:
        buffer = io.BytesIO()
        write(buffer)
        draft = self.folder / f".{os.getpid()}.partial"
        with _writing(self.folder / name) as path:
            try:
                draft.write_bytes(buffer.getvalue())
                draft.replace(path)
            finally:
                with suppress(OSError):  # it is gone, or there is something worse to tell
                    draft.unlink()


def as_json(line: Mapping[str, Any]) -> str:
    """A manifest line as it is written: one line, valid UTF-8, no NaN."""
    text = json.dumps(line, ensure_ascii=False, allow_nan=False)
    # A lone surrogate, from a name that is not UTF-8, becomes the escape that JSON has for it.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


@contextmanager
def _writing(path: Path) -> Iterator[Path]:
    try:
        yield path
    except OSError as error:
        raise CamkitError(f"cannot write {path}: {error.strerror}; what was finished stays valid") from None


@lru_cache(maxsize=8)
def class_slugs(classes: tuple[str, ...]) -> tuple[str, ...]:
    """Each class as part of a file name; with its index where the name alone would be shared or empty."""
    slugs = [slug(name) for name in classes]
    count = Counter(slugs)
    return tuple(
        name if name and count[name] == 1 else f"{name or 'class'}-{index}"
        for index, name in enumerate(slugs)
    )


def slug(text: str) -> str:
    """A text as part of a file name: no separators or blanks, and not too long."""
    return shortened(re.sub(r"[^\w.+~-]+", "_", text).strip("_").lstrip("."), MAX_NAME_BYTES)


def shortened(text: str, limit: int) -> str:
    """At most `limit` bytes of UTF-8; what is cut off is replaced by a digest, so names stay apart."""
    raw = text.encode()
    if len(raw) <= limit:
        return text
    digest = hashlib.sha256(raw).hexdigest()[:8]
    return f"{raw[: limit - 9].decode(errors='ignore')}-{digest}"


def _facts(result: Explanation | Failure) -> dict[str, Any]:
    shared: dict[str, Any] = {
        "schema": SCHEMA,
        "camkit_version": camkit.__version__,
        "torch_version": str(torch.__version__),
    }
    if isinstance(result, Failure):
        return shared | {
            "image": result.source,
            "image_sha256": result.sha256,
            "status": "error",
            "error": str(result.error),
            "warnings": [],
        }
    found = plugins.get("explainer", result.backend)
    model = result.model
    return shared | {
        "image": result.photo.source,
        "image_sha256": result.photo.sha256,
        "status": "ok",
        "backend": found.name,
        "backend_dist": found.dist,
        "backend_version": found.version,
        "method": result.method,
        "options": dict(result.options),
        "layer": result.layer,
        "class_index": result.class_index,
        "class_name": result.class_name,
        "probability": result.probability,
        "logit": result.logit,
        "predicted_index": result.predicted_index,
        "predicted_name": result.predicted_name,
        "map_shape": list(result.map.shape),
        "model": model.name,
        "model_sha256": model.sha256,
        "preprocessing": model.preprocess.to_dict(),
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "warnings": list(result.warnings),
    }
