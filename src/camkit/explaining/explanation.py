"""One map of one photograph, with all that belongs to it."""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from camkit.contracts.model import LoadedModel
from camkit.contracts.scores import THRESHOLD, ScoreKind, figure
from camkit.core.class_names import class_from_path
from camkit.drawing import overlay
from camkit.drawing.evidence import Scale, scale_of
from camkit.drawing.png import to_png
from camkit.drawing.style import Style
from camkit.errors import UsageError, counted
from camkit.explaining import captions, embedding
from camkit.explaining.boxes import Box, Segment, outline
from camkit.explaining.manifest import FIELDS, Line
from camkit.explaining.map_facts import measured, versions
from camkit.explaining.naming import class_slugs, output_name, slug
from camkit.images import channels
from camkit.images.decoding import Photo
from camkit.registry import discovery

# Fields of a manifest line that are called as those of an `Explanation`.
COPIED = (
    "method layer layout class_index class_name like_sha256 probability logit predicted_index "
    "predicted_name scores"
).split()


@dataclass(frozen=True)
class Explanation:
    """One map of one photograph for one class, with everything needed to draw it and to account for it.

    map: raw, float32 `[h, w]`, on the CPU.
    scores: what the model's scores were read as: `softmax`, `sigmoid`, `probabilities` or `none`;
        exclusive: whether one class excludes the others.
    probability: what that makes of the score; `None` for `none`. logit: the score itself.
    class_index, class_name: what is explained. Of a function as target there is no index but a name, the
        `logit` is its value, and nothing is known of classes.
    top: the most probable classes with their probabilities (or scores), most probable first.
    predicted: the names of the classes that are predicted: of classes that exclude each other the most
        probable one, else all above 0.5, the most probable first, which may be none.
    predicted_index, predicted_name: the first of them, or `None`.
    box: of a detector, the one that is explained: its class is `class_name`, its score the probability.
        Of a segmentation a `Segment`: the score is the mean of its class over it, the probability, too;
        `top` has the classes with their shares of the area.
    position: of the photograph among those that were asked for.
    layout: how the output of the layer was said to be read, if it was.
    precision: how float32 was multiplied, `ieee`, or `tf32` with rounded factors.
    like_sha256: of the other photograph, where the likeness to one is explained.
    """

    map: Tensor = field(repr=False)
    backend: str
    method: str
    layer: str
    class_index: int | None
    class_name: str
    probability: float | None
    logit: float
    photo: Photo = field(repr=False)
    model: LoadedModel = field(repr=False)
    options: Mapping[str, Any] = field(default_factory=dict)
    position: int = 0
    layout: str | None = None
    warnings: tuple[str, ...] = ()
    top: tuple[tuple[str, float], ...] = ()
    predicted: tuple[str, ...] = ()
    predicted_index: int | None = None
    predicted_name: str | None = None
    scores: ScoreKind = "softmax"
    exclusive: bool = True
    precision: str = "ieee"
    box: Box | None = None
    like_sha256: str | None = None

    @property
    def subject(self) -> str:
        """What is explained: the name of the class, and which box it is, if it is one."""
        return self.class_name if self.box is None else f"{self.class_name} · {self.box}"

    @property
    def slugs(self) -> tuple[str, ...]:
        """The same as parts of a file name: the class, and which box it is."""
        index = self.class_index
        name = slug(self.class_name) if index is None else class_slugs(tuple(self.model.classes))[index]
        return (name,) if self.box is None else (name, self.box.slug)

    @property
    def figure(self) -> str:
        """The probability for people, or the score of a model that has none."""
        return figure(self.probability, self.logit)

    def verdict(self) -> str:
        """One line: what the model says to the photograph."""
        if not self.top:
            return f"{self.class_name} {self.figure}"
        best = [(name, figure(None if self.scores == "none" else p, p)) for name, p in self.top]
        if self.box is not None:
            told = ", ".join(f"{name} {text}" for name, text in best)
            if isinstance(self.box, Segment):
                return f"by area: {told}"
            what = counted(self.box.of, "box", "boxes")
            if self.box.classes:
                return f"{what} of {' or '.join(self.box.classes)}; best of all: {told}"
            return f"{what}: {told}"
        if self.exclusive:
            return ", ".join(f"{name} {text}" for name, text in best[:3])
        if len(self.model.classes) == 1:
            return f"{' '.join(best[0])}: {'' if self.predicted else 'not '}above {THRESHOLD:.0%}"
        shown = [f"{name} {text}" for (name, text), _ in zip(best, self.predicted, strict=False)]
        more = len(self.predicted) - len(shown)
        if shown:
            return f"above {THRESHOLD:.0%}: {', '.join(shown)}{f' and {more} more' if more else ''}"
        return f"no class above {THRESHOLD:.0%}; highest: {' '.join(best[0])}"

    def overlay(
        self,
        *,
        style: Style | None = None,
        together: Scale | None = None,
        **look: Any,
    ) -> Image.Image:
        """The photograph with the map over it, and below what it shows; see `Style`.

        style: how, or the fields of one as `look`. together: the scale of maps that are drawn together.
        """
        style = style or Style(**look)
        self._check_scale(style)
        caption = captions.caption(self.facts(), self.map, style)
        return overlay.draw(
            self.photo, self.map, self.model.preprocess, style, caption, together, outline(self.box)
        )

    @staticmethod
    def _check_scale(style: Style) -> None:
        if style.scale == "run":
            raise UsageError(
                "scale run is of a folder: of single pictures give the value of the full scale"
            )

    def facts(self) -> dict[str, Any]:
        """What the manifest tells of it, whatever is written."""
        found = discovery.get("explainer", self.backend)
        photo, model = self.photo, self.model
        return {name: getattr(self, name) for name in COPIED} | {
            "image": photo.source,
            "image_path": photo.path,
            "image_name": photo.path and photo.name,
            "image_sha256": photo.sha256,
            "status": "ok",
            "backend": found.name,
            "backend_dist": found.dist,
            "backend_version": found.version,
            "options": dict(self.options),
            "predicted": list(self.predicted),
            "predicted_probability": self._predicted_probability,
            "box": None if self.box is None else self.box.to_dict(),
            "label": class_from_path(photo.path, tuple(model.classes)),
            "model": model.name,
            "model_sha256": model.sha256,
            "preprocessing": model.preprocess.to_dict(),
            "device": str(model.device),
            "dtype": str(model.dtype).removeprefix("torch."),
            "precision": self.precision,
            "warnings": list(self.warnings),
        }

    @property
    def _predicted_probability(self) -> float | None:
        """The highest of any class; of a segmentation `top` has shares of the area."""
        known = self.top and self.scores != "none" and not isinstance(self.box, Segment)
        return self.top[0][1] if known else None

    def save(self, path: str | os.PathLike[str], **look: Any) -> None:
        """Write the overlay, whole or not at all; the suffix says the format.

        PNG, JPEG and WebP carry what `camkit show` tells. look: as of `overlay`.
        """
        together = look.pop("together", None)
        style = look.pop("style", None) or Style(**look)
        self._check_scale(style)
        scale = together or scale_of([self.map], style)
        picture = self.overlay(style=style, together=scale)
        embedding.save(picture, Path(path), [self.line(style, scale.high)])

    def record(self, **look: Any) -> str:
        """What a picture of it carries, and `camkit show` prints: JSON, the text `camkit` of a PNG.

        look: as of `overlay`. For those who draw it themselves.
        """
        style = look.pop("style", None) or Style(**look)
        return embedding.record([self.line(style, scale_of([self.map], style).high)])

    def line(self, style: Style, full: float) -> Line:
        """What its picture carries; full: the value that has the strongest colour."""
        key = [slug(self.backend), slug(self.method), *self.slugs]
        own = {"name": output_name(self.photo.name), "map_key": ".".join(key)}
        drawn = {"picture": asdict(style), "full_scale": full}
        return {**dict.fromkeys(FIELDS), **versions(), **self.facts(), **measured(self.map), **own, **drawn}

    def show(self, **look: Any) -> None:
        """Show the overlay: in a notebook below the cell, elsewhere in the system's viewer."""
        picture = self.overlay(**look)
        try:
            from IPython import get_ipython  # type: ignore[import-not-found,unused-ignore]
            from IPython.display import HTML, display  # type: ignore[import-not-found,unused-ignore]

            in_notebook = get_ipython() is not None
        except ImportError:
            in_notebook = False
        if in_notebook:
            display(HTML(self._html(picture)))  # type: ignore[no-untyped-call,unused-ignore]
        else:
            picture.show()

    def caption(self) -> str:
        """One line: what is shown, and what the picture cannot show by itself."""
        shown = f"{self.subject} {self.figure} · {self.backend} {self.method}"
        shown += f" at {self.layer}" if self.layer else ""
        count = self.model.preprocess.photo_channels
        drawn = [] if count == 3 else [channels.remark(count)]
        return " · ".join([shown, *self.remarks(), *drawn])

    def remarks(self, style: Style | None = None) -> tuple[str, ...]:
        """What the picture cannot show by itself: that nothing speaks for the class, or against it."""
        return captions.remarks(self.map, style or Style(), self.backend, self.method)

    def _repr_png_(self) -> bytes:
        return to_png(self.overlay())

    def _repr_html_(self) -> str:
        return self._html(self.overlay())

    def _html(self, picture: Image.Image) -> str:
        data = base64.b64encode(to_png(picture)).decode()
        caption = html.escape(f"{self.photo.source}: {self.caption()}")
        return (
            f'<figure style="margin:0"><img alt="{caption}" src="data:image/png;base64,{data}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
