"""The files that `camkit explain` writes, their names, and the manifest."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import camkit
from camkit.api import LoadedModel
from camkit.errors import CamkitError, ImageError, MapError
from camkit.explanation import Explanation, Failure
from camkit.images import Photo
from camkit.output import Output, slug
from camkit.preprocess import Preprocess
from camkit.render import Style

# The manifest's fields, as DESIGN.md lists them.
FIELDS = """
    schema image image_sha256 status error backend backend_dist backend_version method options layer
    class_index class_name probability logit predicted_index predicted_name map_file map_shape
    overlay_file picture model model_sha256 preprocessing camkit_version torch_version device dtype warnings
""".split()


def tiny_model(classes: Sequence[str] = ("cat", "dog"), name: str = "tiny") -> LoadedModel:
    """One convolution; what it computes does not matter here."""
    module = nn.Sequential(nn.Conv2d(3, len(classes), 4), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    return LoadedModel(module, tuple(classes), Preprocess(size=(32, 32)), name=name)


MODEL = tiny_model()
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
        "class_index": index,
        "class_name": model.classes[index],
        "probability": 0.75,
        "logit": 1.5,
        "top": ((model.classes[0], 0.75),),
        "predicted_index": 1,
        "predicted_name": model.classes[1],
        "photo": Photo(image, source, "ab" * 32),
        "model": model,
        "options": {"reduction": "sum"},
    }
    return Explanation(**values | changes)


def output(folder: Path, **changes: Any) -> Output:
    """An output as the command line opens it."""
    return Output(folder, **{"style": Style(), "view": "model", "several_layers": False} | changes)


def written(folder: Path) -> list[str]:
    """The names in a folder, hidden ones too, without the manifest."""
    return sorted({path.name for path in folder.iterdir()} - {"manifest.jsonl"})


def manifest(folder: Path) -> list[dict[str, Any]]:
    """The lines of the manifest; strict JSON."""

    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is no JSON")

    lines = (folder / "manifest.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def as_json(line: dict[str, Any]) -> Any:
    """A line as it is read again: tuples are lists."""
    return json.loads(json.dumps(line))


# --- names ----------------------------------------------------------------------------------------


def test_files_are_named_by_image_backend_method_and_class(tmp_path: Path) -> None:
    line = output(tmp_path).write(explanation("photos/cat.jpg", index=1))
    assert written(tmp_path) == ["cat.jpg.native.gradcam.dog.npy", "cat.jpg.native.gradcam.dog.png"]
    assert line["map_file"] == "cat.jpg.native.gradcam.dog.npy"
    assert line["overlay_file"] == "cat.jpg.native.gradcam.dog.png"
    look = {"view": "model", "relu": False, "counterfactual": False, "alpha": 0.6, "cmap": "magma"}
    assert line["picture"] == look


def test_several_layers_are_part_of_the_name(tmp_path: Path) -> None:
    out = output(tmp_path, several_layers=True)
    names = [out.write(explanation(layer=layer))["map_file"] for layer in ("body.0", "body.1")]
    assert names == ["cat.jpg.native.gradcam.cat.body.0.npy", "cat.jpg.native.gradcam.cat.body.1.npy"]


def test_the_folder_is_made_with_those_above_it(tmp_path: Path) -> None:
    output(tmp_path / "a" / "b").write(explanation())
    assert len(written(tmp_path / "a" / "b")) == 2


def test_two_photographs_of_one_name_do_not_overwrite_each_other(tmp_path: Path) -> None:
    out = output(tmp_path)
    sources = ["one/cat.jpg", "two/cat.jpg", "three/cat.jpg", "cat.jpg~2"]
    names = [
        out.write(explanation(source, position=position, method=method))["map_file"]
        for position, source in enumerate(sources)
        for method in ("gradcam", "activations")
    ]
    assert len(set(names)) == len(names) == 8
    assert names[0] == "cat.jpg.native.gradcam.cat.npy"
    assert names[1] == "cat.jpg.native.activations.cat.npy"  # of the same photograph
    assert names[2] == "cat.jpg~2.native.gradcam.cat.npy"
    assert names[4] == "cat.jpg~3.native.gradcam.cat.npy"
    assert len(written(tmp_path)) == 16


def test_classes_of_one_name_get_their_index(tmp_path: Path) -> None:
    model = tiny_model(["crane", "dog", "crane"])
    out = output(tmp_path)
    names = [out.write(explanation(model=model, index=i))["map_file"] for i in range(3)]
    assert [name.split(".")[4] for name in names] == ["crane-0", "dog", "crane-2"]


def test_classes_that_only_look_alike_as_file_names_get_it_too(tmp_path: Path) -> None:
    model = tiny_model(["a/b", "a b", "???", "", "dog"])
    out = output(tmp_path)
    names = [out.write(explanation(model=model, index=i))["map_file"] for i in range(5)]
    assert [name.split(".")[4] for name in names] == ["a_b-0", "a_b-1", "class-2", "class-3", "dog"]


ODD_NAMES = {
    "blanks": "two words.jpg",
    "other scripts": "Mäuschen 猫.jpg",
    "bytes that are not UTF-8, as camkit shows them": "caf\\xe9.jpg",
    "a break, as camkit shows it": "line\\nbreak.jpg",
    "leading dots": "..hidden.jpg",
    "a leading dash": "-rf.jpg",
    "signs of the shell": "$HOME;`ls`&'\".jpg",
    "as long as may be": "x" * 255,
    "long in another script": "猫" * 85,
    "signs only": "???",
    "nothing": "",
}


@pytest.mark.parametrize("kind", ODD_NAMES)
@pytest.mark.parametrize("odd", ["image", "class"])
def test_odd_names_become_plain_ones(tmp_path: Path, kind: str, odd: str) -> None:
    name = ODD_NAMES[kind]
    model = tiny_model([name if odd == "class" else "cat", "dog"])
    source = f"photos/{name}" if odd == "image" else "photos/cat.jpg"
    out = output(tmp_path, several_layers=True)
    line = out.write(explanation(source, model=model))
    assert written(tmp_path) == sorted([line["map_file"], line["overlay_file"]])
    for file in written(tmp_path):
        assert len(file.encode()) <= 255
        assert not set(file) & set("/\\ \n$;`&'\"?*")
        assert not file.startswith(".") and ".." not in file
    assert (line["image"], line["class_name"]) == (source, model.classes[0])  # the truth is here
    assert manifest(tmp_path) == [as_json(line)]


def test_names_that_are_too_long_together_are_cut_and_stay_apart(tmp_path: Path) -> None:
    model = tiny_model(["猫" * 60 + "a", "猫" * 60 + "b"])
    out = output(tmp_path, several_layers=True)
    names = [
        out.write(explanation("x" * 200 + ".jpg", model=model, index=i, layer=layer))["overlay_file"]
        for i in (0, 1)
        for layer in ("body." * 30 + "1", "body." * 30 + "2")
    ]
    assert len(set(names)) == 4
    assert len(written(tmp_path)) == 8
    assert all(len(name.encode()) <= 255 for name in written(tmp_path))


def test_readable_names_stay_as_they_are() -> None:
    for name in ("cat.jpg", "IMG_2024-01-01~2.jpeg", "C++", "Mäuschen", "american_bulldog_146.jpg"):
        assert slug(name) == name


# --- contents -------------------------------------------------------------------------------------


def test_the_raw_map_comes_back_bit_by_bit(tmp_path: Path) -> None:
    line = output(tmp_path).write(explanation())
    array = np.load(tmp_path / line["map_file"], allow_pickle=False)
    assert array.dtype == np.float32
    assert torch.equal(torch.from_numpy(array), MAP)
    assert line["map_shape"] == [2, 2]


def test_a_map_that_is_a_view_of_something_larger(tmp_path: Path) -> None:
    large = torch.arange(12.0).reshape(3, 4)
    line = output(tmp_path).write(explanation(map=large.t()[1:3]))
    assert np.load(tmp_path / line["map_file"]).tolist() == [[1, 5, 9], [2, 6, 10]]


@pytest.mark.parametrize("view", ["model", "original"])
def test_the_overlay_is_drawn_as_asked(tmp_path: Path, view: Any) -> None:
    style = Style(alpha=0.3, cmap="viridis", relu=True)
    result = explanation()
    line = output(tmp_path, style=style, view=view).write(result)
    with Image.open(tmp_path / line["overlay_file"]) as picture:
        assert picture.format == "PNG"
        assert picture.size == {"model": (32, 32), "original": (64, 48)}[view]
        expected = result.overlay(view=view, style=style)
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(expected))


def test_a_manifest_line_has_exactly_the_documented_fields(tmp_path: Path) -> None:
    result = explanation(warnings=("odd",))
    line = output(tmp_path).write(result)
    assert manifest(tmp_path) == [as_json(line)]
    assert list(line) == FIELDS
    native = camkit.plugins.get("explainer", "native")
    assert as_json(line) == {
        "schema": 1,
        "image": "photos/cat.jpg",
        "image_sha256": "ab" * 32,
        "status": "ok",
        "error": None,
        "backend": "native",
        "backend_dist": "camkit",
        "backend_version": native.version,
        "method": "gradcam",
        "options": {"reduction": "sum"},
        "layer": "0",
        "class_index": 0,
        "class_name": "cat",
        "probability": 0.75,
        "logit": 1.5,
        "predicted_index": 1,
        "predicted_name": "dog",
        "map_file": "cat.jpg.native.gradcam.cat.npy",
        "map_shape": [2, 2],
        "overlay_file": "cat.jpg.native.gradcam.cat.png",
        "picture": {"view": "model", "relu": False, "counterfactual": False, "alpha": 0.6, "cmap": "magma"},
        "model": "tiny",
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
        "warnings": ["odd"],
    }


def test_the_line_of_a_failure(tmp_path: Path) -> None:
    out = output(tmp_path)
    line = out.write(Failure("photos/bad.jpg", ImageError("bad.jpg is empty (0 bytes)"), 0))
    assert manifest(tmp_path) == [as_json(line)]
    assert list(line) == FIELDS
    told = {key: value for key, value in line.items() if value not in (None, [])}
    assert told == {
        "schema": 1,
        "image": "photos/bad.jpg",
        "status": "error",
        "error": "bad.jpg is empty (0 bytes)",
        "camkit_version": camkit.__version__,
        "torch_version": torch.__version__,
    }
    assert line["warnings"] == []
    assert written(tmp_path) == []


def test_the_failure_of_one_map_names_the_file_it_is_of(tmp_path: Path) -> None:
    line = output(tmp_path).write(Failure("cat.jpg", MapError("2 values are NaN"), 0, sha256="cd" * 32))
    assert (line["image_sha256"], line["error"]) == ("cd" * 32, "2 values are NaN")


def test_quotes_signs_and_bytes_that_are_not_utf8_make_valid_lines(tmp_path: Path) -> None:
    classes = ['the "best"\ncat', "chat \u2028 猫"]
    model = tiny_model(classes, name="caf\udce9")  # a folder name as Python reads it from the system
    out = output(tmp_path)
    for index in (0, 1):
        out.write(explanation(model=model, index=index))
    text = (tmp_path / "manifest.jsonl").read_text("utf-8")
    assert text.endswith("\n")
    lines = [json.loads(line) for line in text.rstrip("\n").split("\n")]
    assert [line["class_name"] for line in lines] == classes
    assert [line["model"] for line in lines] == ["caf\udce9"] * 2
    assert "猫" in text  # readable, not escaped


def test_several_calls_append_and_replace(tmp_path: Path) -> None:
    output(tmp_path).write(explanation())
    output(tmp_path).write(explanation(map=-MAP))
    output(tmp_path).write(explanation("photos/other.jpg"))
    lines = manifest(tmp_path)
    assert [line["map_file"] for line in lines] == [
        "cat.jpg.native.gradcam.cat.npy",
        "cat.jpg.native.gradcam.cat.npy",
        "other.jpg.native.gradcam.cat.npy",
    ]
    assert len(written(tmp_path)) == 4
    assert torch.equal(torch.from_numpy(np.load(tmp_path / lines[0]["map_file"])), -MAP)


# --- when it cannot be written --------------------------------------------------------------------


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("keep me")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(CamkitError, match=r"cannot write into .*file") as caught:
            output(folder)
        assert caught.value.exit_code == 1
    assert (tmp_path / "file").read_text() == "keep me"


@pytest.mark.parametrize("ending", ["npy", "png"])
def test_a_folder_where_a_file_should_be(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"cat.jpg.native.gradcam.cat.{ending}").mkdir()
    with pytest.raises(CamkitError, match=f"cannot write .*{ending}: Is a directory") as caught:
        output(tmp_path).write(explanation())
    assert caught.value.exit_code == 1
    assert not [name for name in written(tmp_path) if "partial" in name]
    assert not (tmp_path / "manifest.jsonl").exists()  # which tells only of files that are there


def test_a_folder_where_the_manifest_should_be(tmp_path: Path) -> None:
    (tmp_path / "manifest.jsonl").mkdir()
    with pytest.raises(CamkitError, match=r"cannot write .*manifest\.jsonl: Is a directory"):
        output(tmp_path).write(explanation())


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    out = output(tmp_path / "out")
    (tmp_path / "out").rmdir()
    with pytest.raises(CamkitError, match=r"cannot write .*: No such file or directory"):
        out.write(explanation())
    (tmp_path / "out").write_text("a file now")
    with pytest.raises(CamkitError, match=r"cannot write .*: Not a directory"):
        out.write(explanation())


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(CamkitError, match="Permission denied"):
        output(tmp_path).write(explanation())


@pytest.mark.parametrize("step", ["write_bytes", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_half_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    line = output(tmp_path).write(explanation())
    before = {name: (tmp_path / name).read_bytes() for name in written(tmp_path)}

    def half(self: Path, data: Any) -> int:
        if step == "write_bytes":
            with self.open("wb") as file:
                file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, step, half)
    with pytest.raises(CamkitError, match=r"cannot write .*: No space left on device; what was finished"):
        output(tmp_path).write(explanation(map=-MAP))
    monkeypatch.undo()
    assert {name: (tmp_path / name).read_bytes() for name in written(tmp_path)} == before
    assert manifest(tmp_path) == [as_json(line)]


# --- sheets ---------------------------------------------------------------------------------------


def test_one_column_needs_no_sheet(tmp_path: Path) -> None:
    out = output(tmp_path)
    results = [explanation(index=0), explanation(index=1)]
    assert out.write_sheet(results) is None
    assert written(tmp_path) == []


@pytest.mark.parametrize(
    "changes", [{"method": "activations"}, {"layer": "1"}, {"backend": "camkit:native"}]
)
def test_several_methods_layers_or_backends_stand_side_by_side(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    path = output(tmp_path).write_sheet([explanation(), explanation(**changes)])
    assert path == tmp_path / "cat.jpg.sheet.png"
    assert written(tmp_path) == ["cat.jpg.sheet.png"]
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.width > picture.height


@pytest.mark.parametrize(
    ("changes", "hot"), [({"backend": "camkit:native"}, False), ({"method": "activations"}, True)]
)
def test_backends_share_their_colours_and_methods_do_not(
    tmp_path: Path, changes: dict[str, Any], hot: bool
) -> None:
    style = Style(alpha=1)
    strong = explanation(map=torch.tensor([[0.0, 1.0]]))
    weak = explanation(map=torch.tensor([[0.0, 0.5]]), **changes)
    path = output(tmp_path, style=style).write_sheet([strong, weak])
    assert path is not None
    with Image.open(path) as picture:
        found = np.asarray(picture).astype(int)
    hottest = np.asarray(strong.overlay(style=style))[0, -1]
    left, right = np.array_split((np.abs(found - hottest) <= 2).all(2), 2, axis=1)
    assert left.sum() > 1000
    assert (right.sum() > 1000) == hot


def test_the_sheet_has_the_name_of_its_photograph(tmp_path: Path) -> None:
    out = output(tmp_path)
    for position in (0, 1):
        result = explanation(position=position)
        out.write(result)
        out.write_sheet([result, dataclasses.replace(result, method="activations")])
    sheets = [name for name in written(tmp_path) if "sheet" in name]
    assert sheets == ["cat.jpg.sheet.png", "cat.jpg~2.sheet.png"]


def _sheet_height(folder: Path, classes: int) -> int:
    model = tiny_model([f"class {i}" for i in range(classes + 1)])
    results = [
        explanation(model=model, index=index, method=method)
        for method in ("gradcam", "activations")
        for index in range(classes)
    ]
    path = output(folder).write_sheet(results)
    assert path is not None
    with Image.open(path) as picture:
        return picture.height


def test_a_sheet_has_a_row_for_each_of_the_first_eight_classes(tmp_path: Path) -> None:
    one, three, eight, nine = (_sheet_height(tmp_path, count) for count in (1, 3, 8, 9))
    assert one < three < eight == nine


def test_a_sheet_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "cat.jpg.sheet.png").mkdir()
    with pytest.raises(CamkitError, match="Is a directory"):
        output(tmp_path).write_sheet([explanation(), explanation(method="activations")])


def test_names_that_look_like_formulas_do_not_break_a_sheet(tmp_path: Path) -> None:
    model = tiny_model(["$x_$", "dog"])
    results = [explanation("a$_$b.jpg", model=model, method=m) for m in ("gradcam", "activations")]
    assert output(tmp_path).write_sheet(results) is not None
