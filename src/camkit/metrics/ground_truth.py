"""Where the object is, from files: pets' annotations, a folder of masks, COCO's json.

`read` picks by what it finds and gives a function from a photograph to its mask, in the photograph's own
pixels, or `None` if nothing is known of it; `as_seen` brings the mask to what the model sees. Files may
come from strangers: no entity of an XML file is expanded, and every failure is one `UsageError` line or,
for pictures, an `ImageError`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from camkit.errors import UsageError, reason, typed_reason
from camkit.files import read_regular
from camkit.images import decoding, finding, run_lengths
from camkit.images.decoding import Photo
from camkit.images.preprocess import Preprocess
from camkit.images.run_lengths import Mask

# From a photograph's file and its size (width, height) to bool [height, width].
Truth = Callable[[Path, tuple[int, int]], Tensor | None]
Box = tuple[float, float, float, float]
T = TypeVar("T")

MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif", ".pgm", ".pbm")
TRIMAP_FOREGROUND = 1  # 2 is background, 3 the border that belongs to neither
MAX_XML = 2**20
MAX_JSON = 2**40  # COCO's own have half a gigabyte
MAX_COORDINATE = 10**6  # far outside of any photograph


def read(source: str | os.PathLike[str]) -> Truth:
    """The annotations in `source`, by its layout.

    - a folder with `trimaps/`, `xmls/` or both, as the Oxford-IIIT Pet data have: the trimap's
      foreground, or, for a photograph without one, the VOC boxes;
    - a folder of masks, with the photographs' names: every pixel that is not zero;
    - a COCO json: polygons and run-length masks, or the box of an annotation without.

    Raises `UsageError` if it is none of these.
    """
    path = Path(source)
    if path.is_file():
        return _of_one_photograph(coco(path), attrgetter("name"))
    if not path.is_dir():
        raise UsageError(
            f"there is no truth {finding.display(path)!r}: a folder of annotations or a COCO json"
        )
    layout = pets if (path / "trimaps").is_dir() or (path / "xmls").is_dir() else masks
    return _of_one_photograph(layout(path), attrgetter("stem"))


def _of_one_photograph(truth: Truth, name_of: Callable[[Path], str]) -> Truth:
    """`UsageError` for photographs of one name, as far as annotations know it: `name_of`."""
    seen: dict[str, Path] = {}

    def mask(photo: Path, size: tuple[int, int]) -> Tensor | None:
        found = truth(photo, size)
        if found is not None and (other := seen.setdefault(name_of(photo), photo)) != photo:
            raise UsageError(
                f"{finding.display(photo)} has the name of {finding.display(other)}, and annotations are "
                "found by the name alone"
            )
        return found

    return mask


def of_photograph(truth: Truth, path: Path, photo: Photo) -> Tensor | None:
    """Where the object in a photograph is, bool `[height, width]`, or `None` if nothing is known of it.

    Raises `UsageError` for annotations that do not fit it, and where its EXIF orientation leaves its size
    as it is: nobody knows whether they are of the picture as it is stored or of the upright one.
    """
    size = photo.whole or photo.image.size
    mask = truth(path, size)
    if mask is not None and (photo.turn in (2, 3, 4) or (photo.turn != 1 and size[0] == size[1])):
        raise UsageError(
            f"{finding.display(path)} is turned by its EXIF orientation {photo.turn}, and nothing tells "
            "whether its annotations are: save it upright, without that orientation"
        )
    return mask


def as_seen(mask: Tensor, preprocess: Preprocess) -> Tensor:
    """What the model sees of a mask bool `[h, w]`, bool `[H, W]` of the preprocessing's size.

    Resized and cropped as the photograph is; a pixel counts if most of it does.
    """
    picture = Image.fromarray(mask.cpu().numpy().astype(np.uint8) * 255)
    seen = preprocess.cut(picture)
    if preprocess.presize is not None:
        seen = seen.resize(preprocess.size[::-1])
    return torch.from_numpy(np.asarray(seen) > 127)


# --- layouts ----------------------------------------------------------------------------------------


def pets(folder: Path) -> Truth:
    """`trimaps/NAME.png`, otherwise `xmls/NAME.xml`."""

    def mask(photo: Path, size: tuple[int, int]) -> Tensor | None:
        trimap = folder / "trimaps" / f"{photo.stem}.png"
        if trimap.is_file():
            return _fitting(trimap, size) == TRIMAP_FOREGROUND
        boxes = folder / "xmls" / f"{photo.stem}.xml"
        if not boxes.is_file():
            return None
        _check_size(finding.display(boxes), _of_voc(boxes, _voc_size), size)
        return drawn(size, boxes=voc_boxes(boxes))

    return mask


def masks(folder: Path) -> Truth:
    """A mask beside its photograph's name, whatever the suffix; without loss, so not JPEG."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in MASK_SUFFIXES and (other := found.setdefault(path.stem, path)) != path:
            name = finding.display(path)
            raise UsageError(f"{name} and {finding.display(other)} are of the same photograph: keep one")
    if not found:
        raise UsageError(
            f"there are no masks in {finding.display(folder)!r}: pictures ({', '.join(MASK_SUFFIXES)}) "
            "with the photographs' names, or annotations as the pets have (trimaps/, xmls/)"
        )

    def mask(photo: Path, size: tuple[int, int]) -> Tensor | None:
        path = found.get(photo.stem)
        return None if path is None else _fitting(path, size) != 0

    return mask


def coco(path: Path) -> Truth:
    """All annotations of a photograph together, crowds too, in a file of COCO's format."""
    name = finding.display(path)
    try:
        data = json.loads(read_regular(path, MAX_JSON))
        records = {record["id"]: record for record in data["images"]}
        by_file: dict[str, list[Mapping[str, Any]]] = {
            Path(record["file_name"]).name: [] for record in records.values()
        }
        sizes = {
            Path(record["file_name"]).name: (record.get("width"), record.get("height"))
            for record in records.values()
        }
        if len(by_file) < len(records):
            raise ValueError("several images have the same file name")
        for annotation in data["annotations"]:
            by_file[Path(records[annotation["image_id"]]["file_name"]).name].append(annotation)
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {reason(error)}") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(
            f"{name} is no COCO json with `images` and `annotations` ({typed_reason(error)})"
        ) from None

    def mask(photo: Path, size: tuple[int, int]) -> Tensor | None:
        annotations = by_file.get(photo.name)
        if annotations is None:
            return None
        _check_size(f"{photo.name} in {name}", sizes[photo.name], size)
        try:
            shapes = list(_coco_shapes(annotations, size))
        except (ValueError, LookupError, TypeError, OverflowError) as error:
            raise UsageError(
                f"{name}: an annotation of {photo.name} cannot be read ({reason(error)})"
            ) from None
        return drawn(
            size,
            boxes=[shape for kind, shape in shapes if kind == "box"],
            polygons=[shape for kind, shape in shapes if kind == "polygon"],
            masks=[shape for kind, shape in shapes if kind == "mask"],
        )

    return mask


def _coco_shapes(
    annotations: Iterable[Mapping[str, Any]], size: tuple[int, int]
) -> Iterator[tuple[str, Any]]:
    for annotation in annotations:
        outline = annotation.get("segmentation")
        if isinstance(outline, Mapping):
            found = run_lengths.decoded(outline)
            if found.shape != size[::-1]:
                raise ValueError(f"a mask of {found.shape[1]} x {found.shape[0]} pixels")
            yield "mask", found
        elif outline:
            for polygon in outline:
                values = list(map(_number, polygon))
                if len(values) < 6 or len(values) % 2:
                    raise ValueError(f"a polygon of {len(values)} numbers")
                yield "polygon", values
        else:
            left, top, width, height = map(_number, annotation["bbox"])
            yield "box", (left, top, left + width, top + height)


def voc_boxes(path: Path) -> list[Box]:
    """Left, top, right, bottom of every `bndbox` in a VOC annotation, in pixels from 0, right open.

    Raises `UsageError` if it is none, larger than 1 MiB, or declares a document type: that is how an XML
    file names entities, which may grow without bounds or read other files.
    """
    return _of_voc(path, lambda root: [_box(box) for box in root.iter("bndbox")])


def voc_objects(path: Path) -> list[tuple[str, Box, bool]]:
    """The name of every object of a VOC annotation, its box, and whether it is marked as difficult.

    Raises as `voc_boxes`.
    """
    return _of_voc(path, lambda root: [_object(one) for one in root.iter("object")])


def _of_voc(path: Path, find: Callable[[ElementTree.Element], T]) -> T:
    name = finding.display(path)
    try:
        data = read_regular(path, MAX_XML)
    except (OSError, ValueError) as error:
        raise UsageError(f"{name} cannot be read: {reason(error)}") from None
    try:
        guard = expat.ParserCreate()
        guard.StartDoctypeDeclHandler = _refuse
        guard.Parse(data, True)
        return find(ElementTree.fromstring(data))
    except (expat.ExpatError, ElementTree.ParseError, ValueError) as error:
        raise UsageError(f"{name} is no VOC annotation: {reason(error)}") from None


def _object(found: ElementTree.Element) -> tuple[str, Box, bool]:
    name, box = found.findtext("name"), found.find("bndbox")
    if not name or box is None:
        raise ValueError("an object without a name or a box")
    return name.strip(), _box(box), (found.findtext("difficult") or "0").strip() == "1"


def _box(box: ElementTree.Element) -> Box:
    # VOC counts pixels from 1, and xmax is the last pixel inside.
    return _value(box, "xmin") - 1, _value(box, "ymin") - 1, _value(box, "xmax"), _value(box, "ymax")


def _value(box: ElementTree.Element, tag: str) -> float:
    return _number(box.findtext(tag) or f"no {tag}")


def _number(text: Any) -> float:
    """A coordinate; `ValueError` for anything else."""
    number = float(text)
    if not abs(number) <= MAX_COORDINATE:
        raise ValueError(f"{str(text)[:50]} is no coordinate")
    return number


def _voc_size(root: ElementTree.Element) -> tuple[Any, Any]:
    texts = ((root.findtext(f"size/{side}") or "").strip() for side in ("width", "height"))
    width, height = (int(text) if text.isdecimal() else None for text in texts)
    return width, height


def _check_size(name: str, told: tuple[Any, Any], size: tuple[int, int]) -> None:
    """`UsageError` for annotations of a photograph of another size, as far as they tell it."""
    if all(isinstance(side, int) and side > 0 for side in told) and told != size:
        raise UsageError(
            f"{name} is of {told[0]} x {told[1]}, the photograph has {size[0]} x {size[1]} pixels"
        )


def _refuse(*_: object) -> None:
    raise ValueError("it declares a document type, which annotations do not need")


def drawn(
    size: tuple[int, int],
    boxes: Iterable[Box] = (),
    polygons: Iterable[list[float]] = (),
    masks: Iterable[Mask] = (),
) -> Tensor:
    """bool `[height, width]`: all inside the shapes; what lies outside the photograph is cut off.

    Coordinates are of the edges of pixels. A pixel is inside a polygon if its middle is.
    """
    width, height = size
    mask = torch.zeros(height, width, dtype=torch.bool)
    for polygon in polygons:
        mask |= _inside(np.reshape(polygon, (-1, 2)), width, height)
    for left, top, right, bottom in boxes:
        x0, x1 = (round(min(max(edge, 0), width)) for edge in (left, right))
        y0, y1 = (round(min(max(edge, 0), height)) for edge in (top, bottom))
        mask[y0:y1, x0:x1] = True
    for one in masks:
        mask |= torch.from_numpy(np.ascontiguousarray(one))
    return mask


def _inside(corners: np.ndarray[Any, np.dtype[np.float64]], width: int, height: int) -> Tensor:
    """Which middles of pixels a polygon `[n, 2]` holds, bool `[height, width]`: by the even-odd rule."""
    middles, crossings = np.arange(height) + 0.5, np.zeros((height, width + 1), dtype=np.int32)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        rows = np.flatnonzero((middles >= min(y0, y1)) & (middles < max(y0, y1)))
        x = x0 + (middles[rows] - y0) * ((x1 - x0) / (y1 - y0) if len(rows) else 0.0)
        np.add.at(crossings, (rows, np.clip(np.ceil(x - 0.5), 0, width).astype(int)), 1)
    return torch.from_numpy(crossings.cumsum(1)[:, :width] % 2 == 1)


def _fitting(path: Path, size: tuple[int, int]) -> Tensor:
    values = torch.from_numpy(decoding.load_mask(path))
    height, width = values.shape
    if (width, height) != size:
        raise UsageError(
            f"{finding.display(path)} is {width} x {height}, its photograph {size[0]} x {size[1]} pixels"
        )
    return values
