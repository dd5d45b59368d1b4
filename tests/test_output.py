"""The files that `camkit explain` writes, their names, and the manifest."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import is_of_page
from torch import nn

import camkit
from camkit.contracts.model import LoadedModel
from camkit.drawing import colours, text
from camkit.drawing.style import Style
from camkit.errors import CamkitError, ImageError, MapError
from camkit.explaining import embedding, manifest, naming, redrawing, sheets
from camkit.explaining import output as output_module
from camkit.explaining.explanation import Explanation
from camkit.explaining.manifest_lines import Result, request_id
from camkit.explaining.naming import output_name, slug
from camkit.explaining.output import Output
from camkit.explaining.plan import plan
from camkit.explaining.stages import Stages
from camkit.explaining.stored_maps import load_map
from camkit.images import decoding
from camkit.images.decoding import Photo
from camkit.images.preprocess import Preprocess
from camkit.images.workers import Failure
from camkit.models.identity import identity

# The manifest's fields, as the reference lists them.
FIELDS = """
    schema request name results image image_path image_name image_sha256 status error backend
    backend_dist backend_version method options layer layout class_index class_name like_sha256 scores
    probability logit predicted predicted_index predicted_name predicted_probability box label
    map_file map_key map_sha256 map_shape map_range border_share truth_share truth_area overlay_file
    overlay_sha256 overlay_box picture full_scale sheet_file model model_spec model_facts model_sha256
    preprocessing camkit_version torch_version device dtype precision warnings
""".split()


def tiny_model(classes: Sequence[str] = ("cat", "dog"), name: str = "tiny") -> LoadedModel:
    """One convolution; what it computes does not matter here."""
    module = nn.Sequential(nn.Conv2d(3, len(classes), 4), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    return LoadedModel(module, tuple(classes), Preprocess(size=(32, 32)), name=name)


MODEL = tiny_model()
ODD = tiny_model(['the "best" 猫', "dog"], name="caf\udce9")
MAP = torch.tensor([[-1.5, 0.25], [1e-7, 3.0]])


def explanation(
    source: str = "photos/cat.jpg", *, model: LoadedModel = MODEL, index: int = 0, **changes: Any
) -> Explanation:
    """An explanation as the host makes them."""
    image = Image.new("RGB", (64, 48), (200, 30, 30))
    values: dict[str, Any] = {
        "map": MAP,
        "backend": "native",
        "method": "gradcam",
        "layer": "0",
        "layout": None,
        "class_index": index,
        "class_name": model.classes[index],
        "probability": 0.75,
        "logit": 1.5,
        "top": ((model.classes[0], 0.75),),
        "predicted_index": 1,
        "predicted_name": model.classes[1],
        "predicted": (model.classes[1],),
        "photo": Photo(image, source, "ab" * 32, name=PurePosixPath(source).name),
        "model": model,
        "options": {"reduction": "sum"},
    }
    return Explanation(**values | changes)


def output(folder: Path, **changes: Any) -> Output:
    """An output as the command line opens it."""
    return Output(folder, **{"style": Style()} | changes)


def put(out: Output, *results: Result) -> list[dict[str, Any]]:
    """Write results, those of one photograph together; the manifest lines."""
    photos = [list(group) for _, group in groupby(results, key=lambda result: result.position)]
    return [line for written in out.write_all(photos) for line in written.lines]


def written(folder: Path) -> list[str]:
    """The names in a folder, hidden ones too, without the manifest and what belongs to the page."""
    names = {path.name for path in folder.iterdir() if not is_of_page(path)}
    return sorted(names - {manifest.NAME, manifest.LOCK})


def manifest_lines(folder: Path) -> list[dict[str, Any]]:
    """The lines of the manifest; strict JSON."""

    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is no JSON")

    lines = (folder / "manifest.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def as_json(line: dict[str, Any]) -> Any:
    """A line as it is read again: tuples are lists."""
    return json.loads(json.dumps(line))


LOOK = {
    "relu": False,
    "counterfactual": False,
    "alpha": 0.8,
    "cmap": "camkit",
    "look": "default",
    "view": "original",
    "scale": "image",
    "size": None,
    "caption": True,
    "cells": False,
}


# --- names ----------------------------------------------------------------------------------------


def test_files_are_named_by_image_backend_method_and_class(tmp_path: Path) -> None:
    (line,) = put(output(tmp_path), explanation("photos/cat.jpg", index=1))
    assert written(tmp_path) == ["cat.jpg.native.gradcam.dog.npy", "cat.jpg.native.gradcam.dog.png"]
    assert line["map_file"] == "cat.jpg.native.gradcam.dog.npy"
    assert line["overlay_file"] == "cat.jpg.native.gradcam.dog.png"
    assert line["picture"] == LOOK and line["full_scale"] == 3.0


def test_several_layers_are_part_of_the_name(tmp_path: Path) -> None:
    out = output(tmp_path, name_layers=True)
    lines = put(out, *(explanation(layer=layer) for layer in ("body.0", "body.1")))
    assert [line["map_file"] for line in lines] == [
        "cat.jpg.native.gradcam.cat.body.0.npy",
        "cat.jpg.native.gradcam.cat.body.1.npy",
    ]


def test_the_folder_is_made_with_those_above_it(tmp_path: Path) -> None:
    put(output(tmp_path / "a" / "b"), explanation())
    assert len(written(tmp_path / "a" / "b")) == 2


def test_results_lie_as_their_photographs_do(tmp_path: Path) -> None:
    photos = [
        Photo(explanation().photo.image, "cat.jpg", "ab" * 32, name=n) for n in ("b/cat.jpg", "a/b/c.d")
    ]
    lines = put(output(tmp_path), *(explanation(photo=p, position=i) for i, p in enumerate(photos)))
    assert [(line["name"], line["map_file"], line["overlay_file"]) for line in lines] == [
        ("b/cat.jpg", "b/cat.jpg.native.gradcam.cat.npy", "b/cat.jpg.native.gradcam.cat.png"),
        ("a/b/c.d", "a/b/c.d.native.gradcam.cat.npy", "a/b/c.d.native.gradcam.cat.png"),
    ]
    assert written(tmp_path / "a" / "b") == ["c.d.native.gradcam.cat.npy", "c.d.native.gradcam.cat.png"]


def test_classes_of_one_name_get_their_index(tmp_path: Path) -> None:
    model = tiny_model(["crane", "dog", "crane"])
    lines = put(output(tmp_path), *(explanation(model=model, index=i) for i in range(3)))
    assert [line["map_key"].split(".")[2] for line in lines] == ["crane-0", "dog", "crane-2"]


def test_classes_that_only_look_alike_as_file_names_get_it_too(tmp_path: Path) -> None:
    model = tiny_model(["a/b", "a b", "???", "", "dog"])
    lines = put(output(tmp_path), *(explanation(model=model, index=i) for i in range(5)))
    keys = [line["map_key"].split(".")[2] for line in lines]
    assert keys == ["a_b-0", "a_b-1", "class-2", "class-3", "dog"]
    assert len(written(tmp_path)) == 10 + 1  # with their sheet


NAMES = {  # of photographs, and how their results are called
    "cat.jpg": "cat.jpg",
    "two words.jpg": "two words.jpg",
    "Mäuschen 猫.jpg": "Mäuschen 猫.jpg",
    "$HOME;`ls`&'.jpg": "$HOME;`ls`&'.jpg",
    "-rf.jpg": "-rf.jpg",
    "a/b c/cat~2.jpg": "a/b c/cat~2.jpg",
    "cat..jpg": "cat..jpg",
    'a<b>"c|d?e*.jpg': "a_b__c_d_e_.jpg-DIGEST",
    "C:\\cat.jpg": "C__cat.jpg-DIGEST",
    "line\nbreak.jpg": "line_break.jpg-DIGEST",
    "caf\udce9.jpg": "caf_.jpg-DIGEST",
    " cat.jpg ": "cat.jpg-DIGEST",
    "..hidden.jpg": "hidden.jpg-DIGEST",
    "../../etc/passwd": "DIGEST/DIGEST/etc/passwd",
    "/etc/passwd": "DIGEST/etc/passwd",
    "a//b": "a/DIGEST/b",
    ".": "DIGEST",
    "": "DIGEST",
    "x" * 255: "x" * 111 + "-DIGEST",
    "猫" * 85: "猫" * 37 + "-DIGEST",
}


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_photographs_keep_their_names_as_far_as_file_systems_take_them(name: str) -> None:
    expected = re.escape(NAMES[name]).replace("DIGEST", "[0-9a-f]{8}")
    assert re.fullmatch(expected, output_name(name)), output_name(name)
    assert output_name(output_name(name)) == output_name(name)


def test_names_that_had_to_be_changed_stay_apart() -> None:
    names = ["a?", "a*", "a_", "a\udce9", "a\udce8", ".a_", " a_", "x" * 254, "x" * 255, "/", "./."]
    assert len({output_name(name) for name in names}) == len(names)


ODD_CLASSES = [
    *("two words", "Mäuschen 猫", "caf\udce9", "line\nbreak", "..hidden", "-rf", "$HOME;`ls`&'\".jpg"),
    *("x" * 255, "猫" * 85, "???", "", "../../up", "/etc/passwd", "NUL\0", "a\\b"),
]


@pytest.mark.parametrize("odd", ODD_CLASSES, ids=ascii)
def test_odd_classes_become_plain_names(tmp_path: Path, odd: str) -> None:
    (line,) = put(output(tmp_path, name_layers=True), explanation(model=tiny_model([odd, "dog"])))
    assert written(tmp_path) == sorted([line["map_file"], line["overlay_file"]])
    for file in written(tmp_path):
        assert len(file.encode()) <= 255
        assert not set(file) & set("/\\ \n$;`&'\"?*\0")
    assert line["class_name"] == odd  # the truth is here
    assert manifest_lines(tmp_path) == [as_json(line)]


def test_names_that_are_too_long_together_are_cut_and_stay_apart(tmp_path: Path) -> None:
    model = tiny_model(["猫" * 60 + "a", "猫" * 60 + "b"])
    results = [
        explanation("x" * 200 + ".jpg", model=model, index=i, layer=layer, position=number)
        for number, layer in enumerate(("body." * 30 + "1", "body." * 30 + "2"))
        for i in (0, 1)
    ]
    lines = put(output(tmp_path, name_layers=True), *results)
    assert len({line["overlay_file"] for line in lines}) == 4
    assert len(written(tmp_path)) == 8 + 2  # with their sheets
    assert all(len(name.encode()) <= 255 for name in written(tmp_path))


def test_readable_names_stay_as_they_are() -> None:
    for name in ("cat.jpg", "IMG_2024-01-01~2.jpeg", "C++", "Mäuschen", "american_bulldog_146.jpg"):
        assert slug(name) == name


# --- contents -------------------------------------------------------------------------------------


def test_the_raw_map_comes_back_bit_by_bit(tmp_path: Path) -> None:
    (line,) = put(output(tmp_path), explanation())
    array = np.load(tmp_path / line["map_file"], allow_pickle=False)
    assert array.dtype == np.float32
    assert torch.equal(torch.from_numpy(array), MAP)
    assert line["map_shape"] == [2, 2]


def test_a_map_that_is_a_view_of_something_larger(tmp_path: Path) -> None:
    large = torch.arange(12.0).reshape(3, 4)
    (line,) = put(output(tmp_path), explanation(map=large.t()[1:3]))
    assert np.load(tmp_path / line["map_file"]).tolist() == [[1, 5, 9], [2, 6, 10]]
    assert load_map(tmp_path, line).tolist() == [[1, 5, 9], [2, 6, 10]]


@pytest.mark.parametrize("view", ["model", "original"])
def test_the_overlay_is_drawn_as_asked(tmp_path: Path, view: Any) -> None:
    style = Style(alpha=0.3, cmap="viridis", relu=True, view=view, caption=False, size=64)
    result = explanation()
    (line,) = put(output(tmp_path, style=style), result)
    with Image.open(tmp_path / line["overlay_file"]) as picture:
        assert picture.format == "PNG"
        assert picture.size == {"model": (64, 64), "original": (64, 48)}[view]
        expected = result.overlay(style=style)
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(expected))


def test_a_manifest_line_has_exactly_the_documented_fields(tmp_path: Path) -> None:
    out = output(tmp_path, spec="the spec", request="0123")
    (line,) = put(out, explanation(warnings=("odd",)))
    assert manifest_lines(tmp_path) == [as_json(line)]
    assert list(line) == FIELDS == manifest.FIELDS
    native = camkit.registry.discovery.get("explainer", "native")
    assert as_json(line) == {
        "schema": 2,
        "request": "0123",
        "name": "cat.jpg",
        "results": 1,
        "image": "photos/cat.jpg",
        "image_path": None,
        "image_name": None,
        "image_sha256": "ab" * 32,
        "status": "ok",
        "error": None,
        "backend": "native",
        "backend_dist": "camkit",
        "backend_version": native.version,
        "method": "gradcam",
        "options": {"reduction": "sum"},
        "layer": "0",
        "layout": None,
        "class_index": 0,
        "class_name": "cat",
        "probability": 0.75,
        "logit": 1.5,
        "predicted_index": 1,
        "predicted_name": "dog",
        "predicted": ["dog"],
        "predicted_probability": 0.75,
        "box": None,
        "label": None,
        "scores": "softmax",
        "map_file": "cat.jpg.native.gradcam.cat.the_spec.npy",
        "map_key": "native.gradcam.cat.the_spec",
        "map_sha256": hashlib.sha256(MAP.numpy().tobytes()).hexdigest(),
        "map_shape": [2, 2],
        "map_range": [-1.5, 3.0],
        "border_share": None,
        "like_sha256": None,
        "truth_share": None,
        "truth_area": None,
        "overlay_file": "cat.jpg.native.gradcam.cat.the_spec.png",
        "overlay_sha256": hashlib.sha256((tmp_path / line["overlay_file"]).read_bytes()).hexdigest(),
        "overlay_box": [32, 0, 288, 192],
        "picture": LOOK,
        "full_scale": 3.0,
        "sheet_file": None,
        "model": "tiny",
        "model_spec": "the spec",
        "model_facts": {},
        "model_sha256": MODEL.sha256,
        "preprocessing": {
            "size": [32, 32],
            "resize": None,
            "fit": "crop",
            "interpolation": "bilinear",
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
        },
        "camkit_version": camkit.__version__,
        "torch_version": torch.__version__,
        "device": "cpu",
        "dtype": "float32",
        "precision": "ieee",
        "warnings": ["odd"],
    }


def test_the_line_of_a_failure(tmp_path: Path) -> None:
    error = ImageError("bad.jpg is empty (0 bytes)")
    (line,) = put(output(tmp_path), Failure("photos/bad.jpg", error, 0, name="bad\n.jpg"))
    assert manifest_lines(tmp_path) == [as_json(line)]
    assert list(line) == FIELDS
    told = {key: value for key, value in line.items() if value not in (None, [], {})}
    assert told == {
        "schema": 2,
        "request": "",
        "name": output_name("bad\n.jpg"),
        "results": 1,
        "image": "photos/bad.jpg",
        "status": "error",
        "error": "bad.jpg is empty (0 bytes)",
        "model_spec": "",
        "camkit_version": camkit.__version__,
        "torch_version": torch.__version__,
    }
    assert line["warnings"] == []
    assert written(tmp_path) == []


def test_the_failure_of_one_map_names_the_file_it_is_of(tmp_path: Path) -> None:
    failure = Failure("cat.jpg", MapError("2 values are NaN"), 0, sha256="cd" * 32)
    (line,) = put(output(tmp_path), failure)
    assert (line["image_sha256"], line["error"]) == ("cd" * 32, "2 values are NaN")


def test_quotes_signs_and_bytes_that_are_not_utf8_make_valid_lines(tmp_path: Path) -> None:
    classes = ['the "best"\ncat', "chat \u2028 猫"]
    model = tiny_model(classes, name="caf\udce9")  # a folder name as Python reads it from the system
    put(output(tmp_path), *(explanation(model=model, index=index) for index in (0, 1)))
    text = (tmp_path / "manifest.jsonl").read_text("utf-8")
    assert text.endswith("\n")
    lines = [json.loads(line) for line in text.rstrip("\n").split("\n")]
    assert [line["class_name"] for line in lines] == classes
    assert [line["model"] for line in lines] == ["caf\udce9"] * 2
    assert "猫" in text  # readable, not escaped


def test_several_calls_append_and_replace(tmp_path: Path) -> None:
    put(output(tmp_path), explanation())
    put(output(tmp_path), explanation(map=-MAP))
    put(output(tmp_path), explanation("photos/other.jpg"))
    lines = manifest_lines(tmp_path)
    assert [line["map_file"] for line in lines] == [
        "cat.jpg.native.gradcam.cat.npy",
        "cat.jpg.native.gradcam.cat.npy",
        "other.jpg.native.gradcam.cat.npy",
    ]
    assert len(written(tmp_path)) == 4
    assert torch.equal(torch.from_numpy(np.load(tmp_path / lines[0]["map_file"])), -MAP)


# --- what is there already ------------------------------------------------------------------------

PARTS: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    "nothing": ({}, {}, "", ""),
    "the model by name": ({"spec": "pets"}, {}, "", ""),
    "another model": ({"spec": "torchvision:resnet50@/a/b/c.pth"}, {}, ".torchvision_resnet50_b_c.pth", ""),
    "a bundle": ({"spec": "/home/me/run/bundle/"}, {}, ".run_bundle", ""),
    "a layer": ({"name_layers": True}, {"layer": "layer4.1"}, ".layer4.1", ""),
    "options": (
        {},
        {"options": {"reduction": "mean", "fast": True, "alpha": 0.6}},
        ".reduction-mean.fast-true",
        "",
    ),
    "a view": ({"style": Style(view="model")}, {}, "", ".model"),
    "the lesson's look": ({"style": Style(look="lesson")}, {}, "", ".lesson"),
    "a scale": ({"style": Style(scale=0.5, size=300, caption=False)}, {}, "", ".scale-0.5.300px.bare"),
    "positive": ({"style": Style(relu=True)}, {}, "", ".relu"),
    "negative": ({"style": Style(counterfactual=True)}, {}, "", ".against"),
    "a look": ({"style": Style(alpha=0.25, cmap="viridis")}, {}, "", ".alpha-0.25.viridis"),
    "all of it": (
        {
            "spec": "imagenet",
            "name_layers": True,
            "style": Style(relu=True, alpha=1, cmap="gray", look="contour", view="model", scale=2.0),
        },
        {"options": {"reduction": "mean"}},
        ".0.imagenet.reduction-mean",
        ".contour.model.relu.gray.scale-2.0",
    ),
}


@pytest.mark.parametrize("case", PARTS)
def test_what_differs_from_the_default_is_part_of_the_name(tmp_path: Path, case: str) -> None:
    how, changes, map_part, picture_part = PARTS[case]
    (line,) = put(output(tmp_path, **how), explanation(**changes))
    assert line["map_file"] == f"cat.jpg.native.gradcam.cat{map_part}.npy"
    assert line["map_key"] == f"native.gradcam.cat{map_part}"
    assert line["overlay_file"] == f"cat.jpg.native.gradcam.cat{map_part}{picture_part}.png"


def test_the_type_of_the_model_is_part_of_the_name(tmp_path: Path) -> None:
    half = dataclasses.replace(MODEL, module=tiny_model().module.bfloat16())
    (line,) = put(output(tmp_path), explanation(model=half))
    assert line["map_file"] == "cat.jpg.native.gradcam.cat.bfloat16.npy"


def photograph(sha256: str) -> Photo:
    """Another photograph of the same name."""
    return dataclasses.replace(explanation().photo, sha256=sha256 * 32)


OTHERS: dict[str, dict[str, Any]] = {
    "photograph": {"photo": photograph("cd")},
    "weights": {"model": tiny_model()},
    "preprocessing": {"model": dataclasses.replace(MODEL, preprocess=Preprocess(size=(16, 16)))},
    "layer, which auto chose": {"layer": "2"},
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_answer_of_the_same_name_is_numbered_and_nothing_is_overwritten(
    tmp_path: Path, other: str
) -> None:
    put(output(tmp_path, request="a"), explanation())
    before = {name: (tmp_path / name).read_bytes() for name in written(tmp_path)}
    for number in range(2):  # the second time it is its own
        out = output(tmp_path, request="b")
        (line,) = put(out, explanation(map=MAP * (3 - number), **OTHERS[other]))
        assert line["map_file"] == "cat.jpg.native.gradcam.cat~2.npy"
        assert line["overlay_file"] == "cat.jpg.native.gradcam.cat~2.png"
        assert load_map(tmp_path, line).tolist() == (MAP * (3 - number)).tolist()
        assert out.names.conflicts() == (
            "Files of the same names with other contents are kept; the new ones are "
            f"{tmp_path / line['map_file']}"
        )
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert len(written(tmp_path)) == 4
    assert len(manifest.latest(tmp_path)) == 2
    (line,) = put(output(tmp_path, request="a"), explanation())
    assert line["map_file"] == "cat.jpg.native.gradcam.cat.npy"
    (line,) = put(output(tmp_path, style=Style(relu=True)), explanation(**OTHERS[other], map=MAP * 2))
    assert line["overlay_file"] == "cat.jpg.native.gradcam.cat~2.relu.png"  # beside its map


def test_another_version_keeps_what_was_there_unless_it_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(output(tmp_path), explanation())
    monkeypatch.setattr(camkit, "__version__", "999")
    (same,) = put(output(tmp_path), explanation())
    assert same["map_file"] == "cat.jpg.native.gradcam.cat.npy"
    monkeypatch.setattr(camkit, "__version__", "1000")
    (other,) = put(output(tmp_path), explanation(map=MAP * 2))
    assert other["map_file"] == "cat.jpg.native.gradcam.cat~2.npy"


@pytest.mark.parametrize("rounding", [1.0, 1 + 1e-6])
def test_of_another_look_the_map_is_the_same_file(tmp_path: Path, rounding: float) -> None:
    """Also where it was computed in another batch: else what the first line tells were wrong now."""
    (first,) = put(output(tmp_path), explanation())
    (tmp_path / first["map_file"]).chmod(0o400)
    before = (tmp_path / first["map_file"]).stat().st_mtime_ns
    out = output(tmp_path, style=Style(relu=True), request="another")
    (second,) = put(out, explanation(map=MAP * rounding))
    assert (tmp_path / first["map_file"]).stat().st_mtime_ns == before
    assert [second[key] for key in ("map_file", "map_sha256", "map_range")] == [
        first[key] for key in ("map_file", "map_sha256", "map_range")
    ]
    assert second["overlay_file"] == "cat.jpg.native.gradcam.cat.relu.png" and not out.names.conflicts()
    assert list(map(as_json, (first, second))) == manifest.latest(tmp_path)
    assert load_map(tmp_path, second).tolist() == MAP.tolist()


def test_what_no_line_tells_of_is_kept_but_for_the_run_that_was_interrupted(tmp_path: Path) -> None:
    mine = tmp_path / "cat.jpg.native.gradcam.cat.png"
    mine.write_bytes(b"mine")
    (line,) = put(output(tmp_path / "a"), explanation())
    assert line["overlay_file"] == mine.name
    (line,) = put(output(tmp_path), explanation())
    assert line["overlay_file"] == "cat.jpg.native.gradcam.cat~2.png" and mine.read_bytes() == b"mine"
    (tmp_path / "manifest.jsonl").unlink()  # as if it had been killed before
    (line,) = put(output(tmp_path, resume=True), explanation())
    assert line["overlay_file"] == mine.name and mine.read_bytes() != b"mine"


def test_what_an_older_camkit_wrote_is_known(tmp_path: Path) -> None:
    put(output(tmp_path), explanation(), explanation(method="activations"))
    new = ("map_range", "sheet_file", "full_scale", "model_facts")
    old = [{k: v for k, v in line.items() if k not in new} for line in manifest_lines(tmp_path)]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in old))
    assert [line["sheet_file"] for line in manifest.latest(tmp_path)] == [None, None]
    files = written(tmp_path)
    out = output(tmp_path)
    put(out, explanation(), explanation(method="activations"))
    assert written(tmp_path) == files and not out.names.conflicts()
    put(output(tmp_path), explanation(map=-MAP))
    assert written(tmp_path) == files


@pytest.mark.parametrize("kind", ["npz", "sheet"])
def test_files_of_several_maps_belong_to_their_request(tmp_path: Path, kind: str) -> None:
    format = "png" if kind == "sheet" else kind
    names = []
    for request, size in (("a", 1), ("b", 2), ("a", 3), ("b", 4)):
        results = [explanation(method=m, map=MAP * size) for m in ("gradcam", "activations")]
        lines = put(output(tmp_path, format=format, request=request), *results)
        names += [{line["sheet_file" if kind == "sheet" else "map_file"] for line in lines}]
    first, second = {
        "npz": ("cat.jpg.npz", "cat.jpg.~2.npz"),
        "sheet": ("cat.jpg.sheet.png", "cat.jpg.sheet~2.png"),
    }[kind]
    assert names == [{first}, {second}] * 2
    style = Style(cmap="viridis")
    results = [explanation(method=m) for m in ("gradcam", "layercam")]
    put(output(tmp_path, format=format, request="c", spec="imagenet", style=style), *results)
    new = {"npz": "cat.jpg.imagenet.npz", "sheet": "cat.jpg.imagenet.viridis.sheet.png"}[kind]
    assert new in written(tmp_path)
    if kind == "sheet":
        results = [explanation(method=m, map=MAP.T) for m in ("gradcam", "layercam")]
        (line, _) = put(output(tmp_path, request="d"), *results)
        assert line["sheet_file"] == "cat.jpg.sheet~3.png"


def test_the_manifest_is_read_once_for_many_photographs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = [explanation(f"{i}.jpg", position=i) for i in range(9)]
    put(output(tmp_path), *results)
    read, calls = manifest.read, []
    monkeypatch.setattr(manifest, "read", lambda folder: calls.append(folder) or read(folder))
    for resume in (False, True):
        put(output(tmp_path, request="new", resume=resume, style=Style(relu=True)), *results)
    assert len(calls) == 2


# --- what a picture cannot show -------------------------------------------------------------------

NEGATIVE = -MAP.abs() - 1
# What a sum may leave above zero where the true value is not.
ROUNDED = NEGATIVE.index_fill(1, torch.tensor(0), 1e-6)
SAID: list[tuple[torch.Tensor, str, Style, str | None]] = [
    (MAP, "gradcam", Style(), None),
    (MAP.abs() + 1, "gradcam", Style(), None),
    (NEGATIVE, "gradcam", Style(), "nothing speaks for it"),
    (NEGATIVE, "gradcam", Style(look="lesson"), "nothing speaks for it, brightest is least against it"),
    (NEGATIVE, "gradcam", Style(relu=True), "nothing speaks for it"),
    (NEGATIVE, "gradcam", Style(counterfactual=True), None),
    (ROUNDED, "gradcam", Style(), "nothing speaks for it"),
    (ROUNDED, "gradcam", Style(look="lesson"), "nothing speaks for it, brightest is least against it"),
    (ROUNDED, "gradcam", Style(relu=True), "nothing speaks for it"),
    (-ROUNDED, "gradcam", Style(counterfactual=True), "nothing speaks against it"),
    (ROUNDED * 1e-9, "gradcam", Style(), "nothing speaks for it"),
    (NEGATIVE.index_fill(1, torch.tensor(0), 1e-3), "gradcam", Style(), None),
    (-NEGATIVE, "gradcam", Style(counterfactual=True), "nothing speaks against it"),
    (NEGATIVE, "activations", Style(), "no value is positive"),
    (NEGATIVE, "activations", Style(look="lesson"), "no value is positive, brightest is least negative"),
    (NEGATIVE, "activations", Style(relu=True), "no value is positive"),
    (-NEGATIVE, "activations", Style(counterfactual=True), "no value is negative"),
]


@pytest.mark.parametrize(("map", "method", "style", "said"), SAID)
def test_what_a_picture_cannot_show_is_said_everywhere(
    tmp_path: Path,
    map: torch.Tensor,
    method: str,
    style: Style,
    said: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    titles: list[tuple[str, str]] = []
    draw = sheets.composed

    def composed(sections: Any, heading: str) -> Image.Image:
        cells = [panel for section in sections for row in section.rows for panel in row.panels]
        titles.extend((panel.title, panel.remark) for panel in cells)
        return draw(sections, heading)

    monkeypatch.setattr(sheets, "composed", composed)
    result = explanation(map=map, method=method, warnings=("odd",))
    other = explanation(method="layercam")
    (found,) = output(tmp_path, style=style).write_all([[result, other]])
    assert found.remarks == (() if said is None else (said,), ())
    told = [] if said is None else [f"native {method}, cat: {said}"]
    assert found.lines[0]["warnings"] == ["odd", *told]
    assert found.lines[0]["map_range"] == [float(map.min()), float(map.max())]
    title = "the same for every class" if method == "activations" else ""
    assert titles == [(title, said or ""), ("", "")]


def test_the_caption_says_it_too() -> None:
    plain = explanation().caption()
    assert plain == "cat 75.0% · native gradcam at 0"
    told = "nothing speaks for it"
    assert explanation(map=NEGATIVE).caption() == f"{plain} · {told}"
    assert f"{told}</figcaption>" in explanation(map=NEGATIVE)._repr_html_()
    assert explanation(map=MAP * 0).caption().startswith(f"{plain} · the map is constant")


def test_of_a_picture_that_is_drawn_anew_only_its_own_remark_is_left(tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    Image.new("RGB", (40, 40), (9, 80, 9)).save(path)
    photo = dataclasses.replace(decoding.load(path), name="cat.png")
    folder = tmp_path / "out"
    put(output(folder), explanation(photo=photo, map=NEGATIVE, warnings=("odd",)))
    for style, said in [(Style(relu=True), "nothing speaks for it"), (Style(counterfactual=True), None)]:
        ((line, error),) = redrawing.redraw(folder, style=style)
        assert error is None
        told = [] if said is None else [f"native gradcam, cat: {said}"]
        assert line["warnings"] == ["odd", *told]


# --- other formats --------------------------------------------------------------------------------


def several() -> list[Result]:
    """Two photographs with two maps each, one of odd shape, and one that failed between them."""
    return [
        *(explanation("a/cat.jpg", index=i, map=MAP * (i + 1)) for i in range(2)),
        Failure("bad.jpg", ImageError("bad.jpg is empty (0 bytes)"), 1, name="bad.jpg"),
        *(explanation("b.jpg", index=i, map=MAP[:1] - i, model=ODD, position=2) for i in range(2)),
    ]


@pytest.mark.parametrize("format", ["png", "npz", "parquet"])
def test_every_format_holds_the_same_maps_bit_by_bit(tmp_path: Path, format: Any) -> None:
    results = several()
    lines = put(output(tmp_path, format=format), *results)
    assert manifest_lines(tmp_path) == [as_json(line) for line in lines]
    assert [line["status"] for line in lines] == ["ok", "ok", "error", "ok", "ok"]
    for result, line in zip(results, manifest_lines(tmp_path), strict=True):
        if isinstance(result, Explanation):
            assert torch.equal(torch.from_numpy(load_map(tmp_path, line).copy()), result.map)
            assert (line["map_shape"], line["results"]) == (list(result.map.shape), 2)
            assert (line["overlay_file"] is None) == (format != "png")
        else:
            assert line["map_file"] is None and line["map_key"] is None


def test_npz_is_one_file_for_a_photograph_with_an_array_for_each_map(tmp_path: Path) -> None:
    lines = put(output(tmp_path, format="npz"), *several())
    assert written(tmp_path) == ["b.jpg.npz", "cat.jpg.npz"]
    with np.load(tmp_path / "cat.jpg.npz", allow_pickle=False) as arrays:
        assert {key: array.tolist() for key, array in arrays.items()} == {
            "native.gradcam.cat": MAP.tolist(),
            "native.gradcam.dog": (MAP * 2).tolist(),
        }
        assert all(array.dtype == np.float32 for array in arrays.values())
    assert [line["map_key"] for line in lines[3:]] == ["native.gradcam.the_best_猫", "native.gradcam.dog"]


@pytest.mark.parametrize("format", ["npz", "parquet"])
def test_the_same_maps_make_the_same_bytes(tmp_path: Path, format: Any) -> None:
    for folder in ("one", "two"):
        put(output(tmp_path / folder, format=format), *several())
    files = [{p.name: p.read_bytes() for p in (tmp_path / f).iterdir()} for f in ("one", "two")]
    assert files[0] == files[1] and len(files[0]) > 1


def readers() -> dict[str, Any]:
    """Functions from a Parquet file to its rows."""
    pandas, polars, duckdb = (pytest.importorskip(name) for name in ("pandas", "polars", "duckdb"))

    def by_duckdb(path: Path) -> list[dict[str, Any]]:
        found = duckdb.sql(f"SELECT * FROM '{path}'")
        return [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]

    return {
        "pandas": lambda path: pandas.read_parquet(path, dtype_backend="pyarrow").to_dict("records"),
        "polars": lambda path: polars.read_parquet(path).to_dicts(),
        "duckdb": by_duckdb,
    }


@pytest.mark.parametrize("reader", ["pandas", "polars", "duckdb"])
def test_others_read_the_parquet_table(tmp_path: Path, reader: str) -> None:
    lines = put(output(tmp_path, format="parquet"), *several())
    (file,) = written(tmp_path)
    assert re.fullmatch(r"maps-[0-9a-f]{16}\.parquet", file)
    rows = readers()[reader](tmp_path / file)
    assert [row["name"] for row in rows] == ["cat.jpg", "cat.jpg", "bad.jpg", "b.jpg", "b.jpg"]
    for row, line, result in zip(rows, lines, several(), strict=True):
        assert set(row) == {*FIELDS, "height", "width", "map"} - {
            *("map_file", "overlay_file", "overlay_sha256", "sheet_file", "map_range"),
            *("full_scale", "overlay_box"),
        }
        assert row["schema"] == 2 and row["status"] == line["status"]
        if isinstance(result, Failure):
            assert row["error"] == "bad.jpg is empty (0 bytes)"
            continue
        assert [row["height"], row["width"]] == line["map_shape"] == json.loads(row["map_shape"])
        assert np.array(row["map"], np.float32).tolist() == result.map.flatten().tolist()
        assert (row["class_name"], row["probability"]) == (result.class_name, 0.75)
        assert json.loads(row["options"]) == {"reduction": "sum"}
    assert rows[3]["model"] == "caf\\udce9"  # a column of text is valid UTF-8


def test_many_photographs_make_several_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("camkit.explaining.writers.ParquetWriter.photographs", 3)
    photos = [[explanation(f"{i}.jpg", map=MAP + i, position=i)] for i in range(7)]
    done: list[str] = []
    for found in output(tmp_path, format="parquet").write_all(photos):
        # What is told is on the disk.
        assert (tmp_path / found.lines[0]["map_file"]).is_file()
        assert found.lines[0]["name"] in {line["name"] for line in manifest_lines(tmp_path)}
        done.append(found.lines[0]["name"])
    assert done == [f"{i}.jpg" for i in range(7)]
    tables = [line["map_file"] for line in manifest_lines(tmp_path)]
    assert [tables.count(table) for table in dict.fromkeys(tables)] == [3, 3, 1]
    for line, (result,) in zip(manifest_lines(tmp_path), photos, strict=True):
        assert load_map(tmp_path, line).tolist() == result.map.tolist()


@pytest.mark.parametrize("format", ["npz", "parquet"])
def test_a_photograph_that_failed_alone_leaves_a_line_and_no_file(tmp_path: Path, format: Any) -> None:
    (line,) = put(output(tmp_path, format=format), several()[2])
    assert manifest_lines(tmp_path) == [as_json(line)] and line["status"] == "error"
    assert written(tmp_path) == []


# --- resume ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["png", "npz", "parquet"])
def test_resuming_adds_exactly_what_is_missing(tmp_path: Path, format: Any) -> None:
    """The photographs of a batch come again together, those that are there already, too."""
    first = several()
    settings = {"format": format, "request": "r"}
    put(output(tmp_path, **settings), *first[:3])
    before = {path: path.read_bytes() for path in map(tmp_path.joinpath, written(tmp_path))}
    out = output(tmp_path, **settings, resume=True)
    assert [out.has(name, "ab" * 32) for name in ("cat.jpg", "bad.jpg", "b.jpg")] == [True, False, False]
    assert not out.has("cat.jpg", "cd" * 32)  # another photograph by now
    added = put(out, *first)
    assert [line["name"] for line in added if line["status"] == "ok"] == ["b.jpg", "b.jpg"]
    lines = manifest_lines(tmp_path)
    assert [(line["name"], line["class_index"]) for line in lines] == [
        *[("cat.jpg", 0), ("cat.jpg", 1), ("bad.jpg", None), ("b.jpg", 0), ("b.jpg", 1)],
    ]
    assert {path: path.read_bytes() for path in before} == before
    for line in lines:
        assert line["status"] == "error" or load_map(tmp_path, line).shape == tuple(line["map_shape"])
    assert output(tmp_path, **settings, resume=True).has("b.jpg", "ab" * 32)


@pytest.mark.parametrize("format", ["png", "npz"])
def test_one_result_of_a_photograph_may_be_missing(tmp_path: Path, format: Any) -> None:
    """As after the power failed in the middle of the lines of a photograph."""
    first = several()[:2]
    settings = {"format": format, "request": "r"}
    lines = put(output(tmp_path, **settings), *first)
    path = tmp_path / "manifest.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"\n") + 50])
    out = output(tmp_path, **settings, resume=True)
    assert not out.has("cat.jpg", "ab" * 32)
    assert put(out, *first) == [lines[1]]
    assert sorted(path.read_bytes().splitlines())[-2:] == sorted(whole.splitlines())
    assert list(map(as_json, lines)) == manifest.latest(tmp_path)


def test_a_failure_is_told_again_and_not_written_again(tmp_path: Path) -> None:
    failure = several()[2]
    (line,) = put(output(tmp_path), failure)
    found = list(output(tmp_path, resume=True).write_all([[failure]]))
    assert [written.results for written in found] == [(failure,)]
    assert manifest_lines(tmp_path) == [as_json(line)]


def test_drafts_that_a_killed_process_left_are_swept_away(tmp_path: Path) -> None:
    host = socket.gethostname()
    dead = [f".{host}-999999999-1.partial", f"a/.{host}-999999998-22.partial"]
    kept = [f".{host}-{os.getpid()}-1.partial", ".elsewhere-999999999-1.partial", "mine.partial"]
    for name in (*dead, *kept):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    output(tmp_path)
    assert all((tmp_path / name).exists() for name in dead)  # another run may be at work
    output(tmp_path, resume=True)
    assert not any((tmp_path / name).exists() for name in dead)
    assert all((tmp_path / name).exists() for name in kept)


def test_a_request_is_the_same_for_the_same_work_and_no_other() -> None:
    def request(model: LoadedModel = MODEL, **changes: Any) -> str:
        look = {"style": Style(), "format": "png", "image_format": "png"}
        look |= {name: changes.pop(name) for name in look if name in changes}
        asked = changes.get("classes", ("pred",))
        return request_id(plan(model, **changes), asked, model=identity(model, "tiny"), **look)

    assert request() == request()
    all_different = [
        *(request(), request(tiny_model()), request(dataclasses.replace(MODEL, classes=("a", "b")))),
        request(dataclasses.replace(MODEL, preprocess=Preprocess(size=(16, 16)))),
        *(request(style=Style(relu=True)), request(style=Style(cmap="viridis"))),
        *(request(image_format="webp"), request(format="npz"), request(classes=("all",))),
        *(request(methods=("activations",)), request(layer=("0", "1"))),
        request(options={"reduction": "mean"}),
    ]
    assert len(set(all_different)) == len(all_different)


# --- when it cannot be written --------------------------------------------------------------------


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("keep me")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(CamkitError, match=r"write .*file") as caught:
            output(folder)
        assert caught.value.exit_code == 1
    assert (tmp_path / "file").read_text() == "keep me"


@pytest.mark.parametrize("ending", ["npy", "png"])
def test_a_folder_where_a_file_should_be(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"cat.jpg.native.gradcam.cat.{ending}").mkdir()
    with pytest.raises(CamkitError, match=f"{ending}: Is a directory") as caught:
        put(output(tmp_path), explanation())
    assert caught.value.exit_code == 1
    assert not [name for name in written(tmp_path) if "partial" in name]
    assert not (tmp_path / "manifest.jsonl").exists()  # which tells only of files that are there


def test_a_folder_where_the_manifest_should_be(tmp_path: Path) -> None:
    (tmp_path / "manifest.jsonl").mkdir()
    with pytest.raises(CamkitError, match=r"manifest\.jsonl.*not a regular file"):
        put(output(tmp_path), explanation())


def test_a_file_where_the_folder_was(tmp_path: Path) -> None:
    out = output(tmp_path / "out")
    (tmp_path / "out").write_text("a file now")
    with pytest.raises(CamkitError, match=r"out.*: (Not a directory|File exists)"):
        put(out, explanation())


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(CamkitError, match="Permission denied"):
        put(output(tmp_path), explanation())


def test_files_and_their_names_are_on_the_disk_before_the_manifest_tells_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    brought: list[str] = []
    flush, append = naming.sync_folder, manifest.append

    def flushed(folder: Path) -> None:
        brought.append(folder.relative_to(tmp_path).as_posix())
        flush(folder)

    def told(folder: Path, lines: Sequence[Any]) -> None:
        brought.append(f"{len(lines)} lines")
        append(folder, lines)

    monkeypatch.setattr(naming, "sync_folder", flushed)
    monkeypatch.setattr(manifest, "append", told)
    image = Image.new("RGB", (8, 8))
    photos = [Photo(image, name, "ab" * 32, name=name) for name in ("a/1.jpg", "a/2.jpg", "b/3.jpg")]
    photographs = [[explanation(photo=photo, position=i)] for i, photo in enumerate(photos)]
    assert len(list(output(tmp_path, format="npz").write_all(photographs))) == 3
    assert sorted(brought[:2]) == ["a", "b"] and brought[2:] == ["3 lines"]  # each once, not once a file


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_half_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    put(output(tmp_path), explanation(), explanation(index=1))
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(*((os, "fsync") if step == "fsync" else (Path, "replace")), full)
    with pytest.raises(CamkitError, match=r"cat\.jpg.*: No space left on device"):
        put(output(tmp_path), explanation(map=-MAP))
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_a_sheet_of_many_classes_shows_the_likeliest_and_says_so() -> None:
    model = tiny_model([f"class {n}" for n in range(10)])
    scores = [0.0, 9.0, 1.0, 8.0, 2.0, 7.0, 3.0, 6.0, 4.0, 5.0]
    results = [explanation(model=model, index=n, logit=score) for n, score in enumerate(scores)]
    (shown,) = sheets._likeliest(results).values()
    assert {index for index, _ in shown} == set(range(10)) - {0, 2}  # those of the lowest scores
    assert sheets._left_out(results) == " · the 8 likeliest of 10 classes"
    assert sheets._left_out(results[:8]) == ""


@pytest.mark.parametrize(("scale", "alone"), [("image", "own scale"), (2.5, "shared scale")])
def test_a_sheet_says_how_many_maps_have_the_scale_of_a_legend(
    scale: Any, alone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(text, "write", lambda draw, at, shown, size, **how: told.append(shown))
    maps = [*(explanation(index=n) for n in range(2)), explanation(method="layercam")]
    sheets.sheet(maps, scale=scale)
    assert [words for words in told if "scale" in words] == ["one scale for these 2 maps", alone]


def test_what_was_begun_is_finished_when_the_photographs_end_with_an_exception(tmp_path: Path) -> None:
    def broken() -> Iterator[list[Result]]:
        for position in range(5):
            yield [explanation(f"{position}.jpg", position=position)]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        for _ in output(tmp_path).write_all(broken()):
            pass
    assert [line["image"] for line in manifest_lines(tmp_path)] == [f"{i}.jpg" for i in range(5)]
    assert len(written(tmp_path)) == 10


def test_not_more_photographs_are_in_memory_than_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, begun = threading.Event(), []

    class Blocked(Output):
        def write(self, results: Sequence[Result]) -> Any:
            gate.wait()
            return super().write(results)

    def photos() -> Iterator[list[Result]]:
        for position in range(20):
            begun.append(position)
            yield [explanation(f"{position}.jpg", position=position)]

    out = Blocked(tmp_path, style=Style())
    monkeypatch.setattr(output_module, "PHOTOGRAPHS", 3)
    threading.Timer(0.3, gate.set).start()  # enough for all of them, if nothing held them back
    found = out.write_all(photos(), ahead=5)
    assert next(found).lines[0]["image"] == "0.jpg"
    assert len(begun) <= 5 + 3 + 1  # that wait to be written, and to be told of
    assert [written.lines[0]["image"] for written in found] == [f"{i}.jpg" for i in range(1, 20)]


@pytest.mark.parametrize("format", ["npz", "parquet"])
def test_what_was_begun_is_told_when_the_photographs_end_with_an_error(tmp_path: Path, format: Any) -> None:
    def photos() -> Iterator[list[Result]]:
        for position in range(3):
            yield [explanation(f"{position}.jpg", position=position)]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(Output(tmp_path, style=Style(), format=format).write_all(photos()))
    assert [line["image"] for line in manifest.read(tmp_path)] == ["0.jpg", "1.jpg", "2.jpg"]


def test_the_stages_of_a_run_share_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, stamped = [0.0], threading.Semaphore(0)

    def now() -> float:
        time = clock[0]
        if threading.current_thread() is not threading.main_thread():
            stamped.release()  # a part is finished
        return time

    monkeypatch.setattr(time, "perf_counter", now)
    stages = Stages()

    def photographs() -> Iterator[int]:
        for number in range(3):
            clock[0] += 1
            yield number

    for _ in stages.each(photographs()):
        clock[0] += 2  # of the model
    parts = stages.ahead(iter(range(2)))
    assert next(parts) == 0
    for _ in range(2):
        stamped.acquire()  # until the second part is finished, too
    clock[0] += 3
    assert list(parts) == [1]
    assert stages.shares() == {"explaining": 0.5, "reading": 0.25, "writing": 0.25}


def test_the_model_works_ahead_of_what_is_written() -> None:
    begun, threads = threading.Event(), threading.active_count()

    def parts() -> Iterator[int]:
        yield 0
        begun.set()
        yield 1
        raise MapError("at its place")

    found = Stages().ahead(parts())
    assert next(found) == 0
    assert begun.wait(10), "the next part is begun while this one is in hand"
    assert next(found) == 1
    with pytest.raises(MapError, match="at its place"):
        next(found)
    left = Stages().ahead(iter(range(9)))
    assert next(left) == 0
    left.close()
    assert threading.active_count() == threads, "nothing is left of what is given up"


# --- sheets ---------------------------------------------------------------------------------------


def sheet(out: Output, *results: Explanation) -> Path | None:
    """The sheet of one photograph, with everything else written."""
    (written,) = out.write_all([results])
    return written.sheet


def test_one_map_needs_no_sheet(tmp_path: Path) -> None:
    assert sheet(output(tmp_path), explanation(index=0)) is None
    same = [explanation(index=index, method="activations") for index in (0, 1)]  # knows no class
    assert sheet(output(tmp_path), *same) is None
    assert not [name for name in written(tmp_path) if "sheet" in name]


def test_formats_without_pictures_have_no_sheet(tmp_path: Path) -> None:
    columns = explanation(), explanation(method="activations")
    assert [sheet(output(tmp_path, format=name), *columns) for name in ("npz", "parquet")] == [None] * 2


@pytest.mark.parametrize(
    "changes", [{"method": "activations"}, {"layer": "1"}, {"backend": "camkit:native"}]
)
def test_several_methods_layers_or_backends_stand_side_by_side(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    path = sheet(output(tmp_path), explanation(), explanation(**changes))
    assert path == tmp_path / "cat.jpg.sheet.png"
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.width > picture.height


@pytest.mark.parametrize(
    ("changes", "hot"), [({"backend": "camkit:native"}, False), ({"method": "activations"}, True)]
)
def test_backends_share_their_colours_and_methods_do_not(
    tmp_path: Path, changes: dict[str, Any], hot: bool
) -> None:
    style = Style(relu=True, alpha=1.0)
    strong = explanation(map=torch.tensor([[0.0, 1.0]]))
    weak = explanation(map=torch.tensor([[0.0, 0.5]]), **changes)
    path = sheet(output(tmp_path, style=style), strong, weak)
    assert path is not None
    with Image.open(path) as picture:
        found = np.asarray(picture).astype(int)[:-60]  # without the legends
    hottest = (np.abs(found - colours.FOR[-1]) <= 8).all(2)
    assert hottest[:, : 16 + 320].sum() > 1000
    assert (hottest[:, 16 + 332 : 16 + 332 + 320].sum() > 1000) == hot


def test_two_backends_have_a_panel_of_their_difference(tmp_path: Path) -> None:
    one, other = explanation(), explanation(backend="camkit:native", map=MAP - 3)
    same = explanation(backend="camkit:native")
    sections = []
    for second in (same, other):
        path = sheet(output(tmp_path), one, second)
        assert path is not None
        with Image.open(path) as picture:
            assert picture.width == 2 * 16 + 3 * 320 + 2 * 12
            sections.append(np.asarray(picture).astype(int)[100:300, 2 * 332 + 16 :])
    photo = (200, 30, 30)
    assert (np.abs(sections[0] - photo).max(2) <= 2).sum() > 20_000  # no colour where they agree
    assert (np.abs(sections[1] - photo).max(2) <= 2).sum() < 20_000


def test_a_sheet_tells_the_scale_that_its_maps_have_there(tmp_path: Path) -> None:
    path = sheet(output(tmp_path), explanation(), explanation(index=1, map=MAP * 2))
    assert path is not None
    assert [line["full_scale"] for line in embedding.read(path)] == [6, 6]


def test_the_sheet_lies_beside_the_other_results_of_its_photograph(tmp_path: Path) -> None:
    photo = dataclasses.replace(explanation().photo, name="a/cat.jpg")
    path = sheet(
        output(tmp_path), *(explanation(photo=photo, method=m) for m in ("gradcam", "activations"))
    )
    assert path == tmp_path / "a" / "cat.jpg.sheet.png" and path.is_file()


def _sheet_height(folder: Path, classes: int) -> int:
    model = tiny_model([f"class {i}" for i in range(classes + 1)])
    results = [
        explanation(model=model, index=index, method=method)
        for method in ("gradcam", "activations")
        for index in range(classes)
    ]
    path = sheet(output(folder), *results)
    assert path is not None
    with Image.open(path) as picture:
        return picture.height


def test_a_sheet_has_a_row_for_each_of_the_first_eight_classes(tmp_path: Path) -> None:
    one, three, eight, nine = (_sheet_height(tmp_path, count) for count in (1, 3, 8, 9))
    assert one < three < eight == nine


def test_a_sheet_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "cat.jpg.sheet.png").mkdir()
    with pytest.raises(CamkitError, match="Is a directory"):
        sheet(output(tmp_path), explanation(), explanation(method="activations"))


def test_names_that_look_like_formulas_do_not_break_a_sheet(tmp_path: Path) -> None:
    model = tiny_model(["$x_$", "dog"])
    results = [explanation("a$_$b.jpg", model=model, method=m) for m in ("gradcam", "activations")]
    assert sheet(output(tmp_path), *results) is not None
