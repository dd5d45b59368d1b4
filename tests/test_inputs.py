"""Photographs and models as Python has them, in `explain` and `explain_many`."""

from __future__ import annotations

import ast
import io
import re
import threading
from collections.abc import Iterator
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from tests.conftest import SmallNet
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.models import ResNet18_Weights

import camkit
from camkit.contracts.model import LoadedModel
from camkit.errors import CamkitError, CamkitWarning, ImageError, ModelError, UsageError
from camkit.images.preprocess import Preprocess
from camkit.models.transforms import OwnPreprocess, as_preprocess

CLASSES = ("a", "b", "c", "d", "e")


@pytest.fixture
def model(small_net: SmallNet) -> LoadedModel:
    return LoadedModel(small_net, CLASSES, Preprocess(size=(24, 24)), "small")


@pytest.fixture
def pixels() -> Any:
    return np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)


@pytest.fixture
def address(tmp_path: Path, pixels: Any) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    Image.fromarray(pixels).save(tmp_path / "p.png")
    server = HTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_every_form_of_a_photograph_gives_the_same_map(
    model: LoadedModel, pixels: Any, tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "p.png"
    monkeypatch.setenv("HOME", str(tmp_path))
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    forms: list[Any] = [
        *(path, str(path), "~/p.png", f"{address}/p.png", path.read_bytes(), io.BytesIO(path.read_bytes())),
        *(Image.fromarray(pixels), pixels, pixels / 255, tensor, tensor / 255),
    ]
    expected = camkit.explain(model, path).map
    for form in forms:
        assert torch.equal(camkit.explain(model, form).map, expected), type(form)


def test_grey_arrays_are_photographs(model: LoadedModel, pixels: Any) -> None:
    grey = pixels[:, :, 0]
    expected = camkit.explain(model, Image.fromarray(grey)).map
    for form in (grey, grey[:, :, None], torch.from_numpy(grey)[None]):
        assert torch.equal(camkit.explain(model, form).map, expected)


WRONG: dict[str, Any] = {
    "normalised": (torch.randn(3, 8, 8), r"\[0, 1\].*prepared=True"),
    "five channels": (torch.rand(5, 8, 8), r"\[5, 8, 8\]"),
    "no pixels": (np.zeros((0, 3, 3)), r"\[0, 3, 3\]"),
    "large numbers": (np.full((8, 8), 300), "0 to 255"),
    "a NaN": (np.full((8, 8), np.nan), r"\[0, 1\]"),
    "no image": (b"hello", "image"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_photograph(case: str, model: LoadedModel) -> None:
    source, text = WRONG[case]
    with pytest.raises(ImageError, match=text):
        camkit.explain(model, source)


def test_an_address_without_a_photograph(model: LoadedModel, address: str) -> None:
    with pytest.raises(ImageError, match=r"nothing\.png.*404"):
        camkit.explain(model, f"{address}/nothing.png")


def test_many_photographs_of_every_kind(model: LoadedModel, pixels: Any, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(pixels).save(folder / name)
    batch = np.stack([pixels, pixels])
    rows = [{"image": Image.fromarray(pixels), "label": 3}, {"image": pixels, "label": 1}]
    pairs = [(Image.fromarray(pixels), 0), (Image.fromarray(pixels), 1)]
    loader = [(torch.from_numpy(batch).permute(0, 3, 1, 2), torch.zeros(2))]
    many: list[Any] = [str(folder), folder / "*.png", batch, rows, pairs, loader, iter(folder.iterdir())]
    for images in many:
        assert len(list(camkit.explain_many(model, images))) == 2
    assert len(list(camkit.explain_many(model, str(folder / "a.png")))) == 1
    assert len(list(camkit.explain_many(model, pixels))) == 1
    named = [(Image.fromarray(pixels), "cat"), (str(folder / "a.png"), 0)]
    assert len(list(camkit.explain_many(model, named))) == 2
    for nested in ([["a.png", "b.png"]], [(pixels, pixels)], [[]]):
        with pytest.raises(UsageError, match="images"):
            list(camkit.explain_many(model, nested))
    for several in ([pixels, pixels], batch, []):
        with pytest.raises(UsageError, match="explain_many"):
            camkit.explain(model, several)
    assert camkit.explain(model, [pixels]).class_index == camkit.explain(model, pixels).class_index
    with pytest.raises(UsageError, match="int"):
        list(camkit.explain_many(model, 3))
    with pytest.raises(UsageError, match="photograph"):
        list(camkit.explain_many(model, [{"photograph": "a.png"}]))


def test_targets_for_each_photograph_and_several_for_all(model: LoadedModel, pixels: Any) -> None:
    found = list(camkit.explain_many(model, [pixels] * 3, targets=["b", 4, "a"], batch_size=2))
    assert [one.class_name for one in found] == ["b", "e", "a"]
    for one in found:
        torch.testing.assert_close(one.map, camkit.explain(model, pixels, target=one.class_index).map)
    several = list(camkit.explain_many(model, [pixels] * 2, target=["c", "a"]))
    assert [one.class_name for one in several] == ["c", "a"] * 2
    for targets, text in ((["b"], "fewer"), (["b"] * 4, "more")):
        with pytest.raises(UsageError, match=text):
            list(camkit.explain_many(model, [pixels] * 3, targets=targets))
    with pytest.raises(CamkitError, match="'z'"):
        list(camkit.explain_many(model, [pixels], targets=["z"]))
    with pytest.raises(UsageError, match="explain_many"):
        camkit.explain(model, pixels, target=["a", "b"])


# --- models that are there ------------------------------------------------------------------------


def test_a_module_says_what_is_assumed(small_net: SmallNet, pixels: Any) -> None:
    with pytest.warns(CamkitWarning, match=r"assumed: 224 x 224.*preprocess="):
        result = camkit.explain(small_net, pixels)
    assert result.class_name in {f"class_{i}" for i in range(5)}
    shown = ResNet18_Weights.DEFAULT.transforms()
    result = camkit.explain(small_net, pixels, classes=CLASSES, preprocess=shown, target="c")
    assert result.class_name == "c"
    assert "224 x 224" in repr(result.model)
    assert repr(result.model).count("\n") == 4
    with pytest.raises(CamkitError, match="5"):
        camkit.explain(small_net, pixels, classes=("a", "b"), preprocess=shown)
    with pytest.raises(ModelError, match="int"):
        camkit.load_model(3)


def test_what_is_assumed_is_told_once_at_the_line_of_the_user(small_net: SmallNet, pixels: Any) -> None:
    with pytest.warns(CamkitWarning, match="assumed: 224 x 224") as told:
        camkit.load_model(small_net)
        camkit.explain(small_net, pixels)
        list(camkit.explain_many(small_net, [pixels]))
        camkit.explain(SmallNet().eval(), pixels)  # another model
    lines = [one.lineno for one in told]
    assert [one.filename for one in told] == [__file__] * 2 and lines[1] == lines[0] + 3
    # What is said is not assumed; what is known of another network is no secret.
    camkit.load_model(SmallNet().eval(), size=(24, 24), mean=(0.5,) * 3, std=(0.5,) * 3)
    camkit.load_model("pets", device="cpu")


def test_a_warning_from_deep_inside_names_the_line_of_the_user(small_net: SmallNet) -> None:
    small_net.fc.weight.data.zero_()
    with pytest.warns(CamkitWarning, match="zero") as told:
        camkit.maps(small_net, torch.rand(1, 3, 8, 8), 0)
    with pytest.warns(CamkitWarning, match="zero") as told_too:
        camkit.maps_by(small_net, torch.rand(1, 3, 8, 8), 0)
    assert told[0].filename == told_too[0].filename == __file__


def test_a_size_that_moves_the_automatic_layer_says_so() -> None:
    model = nn.Sequential()
    for name in ("a", "b", "c"):
        model.add_module(name, nn.Sequential(nn.Conv2d(3, 3, 3, 4, 1), nn.ReLU()))
    model.add_module("head", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)))
    said: Any = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    with pytest.warns(CamkitWarning, match="at 48 x 48 pixels the automatic layer is b, not c"):
        small = camkit.load_model(model.eval(), size=(48, 48), **said)
    assert camkit.explain(small, Image.new("RGB", (50, 50), "red")).layer.startswith("b")
    assert "layer" not in camkit.load_model(model, size=(160, 160), **said).notes


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("transform", "preprocess="),
        ("class_names", "classes="),
        ("img_size", "size="),
        ("target_layers", "layer="),
        ("size", r"camkit\.load_model\(\.\.\., size="),
        ("clases", "option 'clases'"),
    ],
)
def test_arguments_as_other_libraries_call_them(
    name: str, text: str, small_net: SmallNet, pixels: Any
) -> None:
    with pytest.raises(UsageError, match=text):
        camkit.explain(small_net, pixels, preprocess=Preprocess(), **{name: None})
    if name != "size":
        with pytest.raises(UsageError, match="load_model takes no"):
            camkit.load_model(small_net, **{name: None})  # type: ignore[arg-type]


CLASSES_AS_OTHERS_HAVE_THEM: dict[str, Any] = {
    "a list": ["cat", "dog", "newt", "owl", "eel"],
    "an array": np.array(["cat", "dog", "newt", "owl", "eel"]),
    "class_to_idx": {"owl": 3, "cat": 0, "eel": 4, "newt": 2, "dog": 1},
    "id2label": {1: "dog", 0: "cat", 2: "newt", 4: "eel", 3: "owl"},
    "a text": "cat, dog, newt, owl, eel",
    "an iterator": iter(("cat", "dog", "newt", "owl", "eel")),
}


@pytest.mark.filterwarnings("ignore:.*assumed:camkit.errors.CamkitWarning")
@pytest.mark.parametrize("kind", CLASSES_AS_OTHERS_HAVE_THEM)
def test_classes_as_other_libraries_have_them(kind: str, small_net: SmallNet) -> None:
    model = camkit.load_model(small_net, classes=CLASSES_AS_OTHERS_HAVE_THEM[kind])
    assert model.classes == ("cat", "dog", "newt", "owl", "eel")
    assert {type(name) for name in model.classes} == {str}


@pytest.mark.filterwarnings("ignore:.*assumed:camkit.errors.CamkitWarning")
def test_numbers_as_other_libraries_have_them(small_net: SmallNet) -> None:
    shown = camkit.load_model(small_net, size=20, mean=[0.5] * 3, std=torch.ones(3)).preprocess
    assert (shown.size, shown.mean, shown.std) == ((20, 20), (0.5,) * 3, (1.0,) * 3)
    assert camkit.load_model(small_net, size=[20, 24]).preprocess.size == (20, 24)


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ({"size": "160x224"}, r"size= .*\(height, width\), not '160x224'"),
        ({"size": (20,)}, r"size= .*\(20,\)"),
        ({"mean": 0.5}, r"mean= .*each channel.*not 0\.5"),
        ({"resize": "3"}, "resize= .*'3'"),
        ({"channels": "3"}, "channels= .*'3'"),
        ({"classes": 3}, "classes= .*not 3"),
        ({"classes": {"cat": 7}}, "classes= .*'cat': 7"),
        ({"arch": "resnet18"}, "file of weights, not to a SmallNet"),
    ],
)
def test_what_no_fact_of_a_model_can_be(said: Any, text: str, small_net: SmallNet) -> None:
    with pytest.raises(UsageError, match=text):
        camkit.load_model(small_net, **said)


def test_few_classes_are_listed(model: LoadedModel, pixels: Any) -> None:
    with pytest.raises(UsageError, match="'zebra': it has a, b, c, d, e"):
        camkit.explain(model, pixels, target="zebra")


class Dicts(nn.Module):
    """Returns a table, as models of Hugging Face do."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.net = SmallNet(classes)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"loss": images.sum(), "logits": self.net(images)}


def test_an_output_by_its_name(pixels: Any) -> None:
    module = Dicts().eval()
    shown = Preprocess(size=(24, 24))
    result = camkit.explain(module, pixels, preprocess=shown, output="logits", target=2)
    plain = camkit.explain(module.net, pixels, preprocess=shown, target=2)
    assert torch.equal(result.map, plain.map)
    assert result.probability == plain.probability


class Probabilities(Dicts):
    """Of classes that do not exclude each other: what they are shows only in the graph."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"loss": images.sum(), "scores": self.net(images).sigmoid()}


def test_what_an_output_means_is_seen_behind_its_name(pixels: Any) -> None:
    result = camkit.explain(
        Probabilities().eval(), pixels, preprocess=Preprocess(size=(24, 24)), output="scores"
    )
    assert (result.scores, result.probability) == ("probabilities", result.logit)
    assert result.warnings == ()


def photo(seed: int) -> Image.Image:
    generator = np.random.default_rng(seed)
    width, height = (int(side) for side in generator.integers(30, 300, 2))
    small = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


NORMAL = transforms.Normalize((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
READ: dict[str, Any] = {
    "torchvision's preset": ResNet18_Weights.DEFAULT.transforms(),
    "resize, crop": transforms.Compose(
        [transforms.Resize(64), transforms.CenterCrop(48), transforms.ToTensor(), NORMAL]
    ),
    "squash": transforms.Compose([transforms.Resize((48, 64)), transforms.ToTensor(), NORMAL]),
    "squash, crop": transforms.Compose(
        [transforms.Resize((64, 64)), transforms.CenterCrop(48), transforms.ToTensor()]
    ),
    "bicubic": transforms.Compose(
        [
            transforms.Resize(64, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop((48, 56)),
            transforms.ToTensor(),
            NORMAL,
        ]
    ),
}


@pytest.mark.parametrize("kind", READ)
def test_transforms_are_read_exactly(kind: str) -> None:
    read = as_preprocess(READ[kind])
    assert type(read) is Preprocess
    for seed in range(20):
        torch.testing.assert_close(read(photo(seed)), READ[kind](photo(seed)), atol=1e-5, rtol=0)


def test_timm_s_configuration_is_read_exactly() -> None:
    from timm.data import create_transform

    for name in (
        {"crop_pct": 0.9},
        {"crop_pct": 1.0, "crop_mode": "squash"},
        {"interpolation": "bilinear"},
    ):
        config: dict[str, Any] = {
            **{"input_size": (3, 48, 48), "interpolation": "bicubic", "crop_pct": 0.875},
            **{"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "crop_mode": "center", **name},
        }
        theirs: Any = create_transform(**config)
        for seed in range(20):
            torch.testing.assert_close(as_preprocess(config)(photo(seed)), theirs(photo(seed)))
        assert type(as_preprocess(theirs)) is Preprocess


def test_any_function_can_show_the_photograph(small_net: SmallNet, pixels: Any) -> None:
    def show(image: Image.Image) -> Tensor:
        return transforms.functional.to_tensor(image.rotate(90).resize((24, 20))) - 0.5

    shown = as_preprocess(show)
    assert isinstance(shown, OwnPreprocess)
    assert shown.size == (20, 24)
    result = camkit.explain(small_net, pixels, preprocess=show, target=1)
    expected = camkit.maps(small_net, show(Image.fromarray(pixels))[None], [1])
    torch.testing.assert_close(result.map, expected[0])
    assert result.overlay(caption=False, size=48).size == (48, 40)  # where it looks is not known
    for wrong, text in (
        (lambda image: 3, "int"),
        (lambda image: torch.ones(3, 4), r"\[3, 4\]"),
        (7, "int"),
    ):
        with pytest.raises(UsageError, match=text):
            as_preprocess(wrong)


# --- what the page shows --------------------------------------------------------------------------

PAGE = Path(__file__).parent.parent / "docs" / "your-model.md"
OF_FASTAI = {"learner", "dls"}  # tried in the tests of camkit-fastai


class Rows(list[Any]):
    """A data set of pictures with names for its labels."""

    classes = ("dog", "cat")


@pytest.mark.filterwarnings("ignore:.*assumed:camkit.errors.CamkitWarning")
def test_the_python_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pixels: Any) -> None:
    """Each statement; every stream is read to its end."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for name in ("cat.jpg", "photos/a.jpg", "photos/b.jpg"):
        Image.fromarray(pixels).save(name)
    torch.save(torchvision.models.resnet18(num_classes=2).state_dict(), "best.pth")
    bands = torchvision.models.shufflenet_v2_x0_5(num_classes=2)
    bands.conv1[0] = nn.Conv2d(13, 24, 3, 2, 1, bias=False)
    torch.save(bands.state_dict(), "satellite.pth")
    prepared = torch.rand(2, 3, 24, 24)
    space: dict[str, Any] = {
        **{
            "module": SmallNet(2).eval(),
            "network": Dicts(2).eval(),
            "names": ["cat", "dog"],
            "weights": ResNet18_Weights.DEFAULT,
        },
        "my_function": transforms.Compose([transforms.RandomRotation(0), transforms.ToTensor()]),
        **{"tensor": prepared[0], "loader": DataLoader(prepared), "photo": Image.fromarray(pixels)},
        "dataset": Rows([(Image.fromarray(pixels), index % 2) for index in range(4)]),
        "table": {"file": ["cat.jpg", "photos/a.jpg"], "label": ["cat", "dog"]},
        "ClassifierOutputTarget": lambda index: lambda scores: scores[..., index],
        **{"means": (0.4,) * 13, "stds": (0.2,) * 13, "bands": np.resize(pixels, (30, 40, 13))},
    }
    results, ran = dict[str, Any](), 0
    page = PAGE.read_text(encoding="utf-8").partition("## From Python")[2]
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        for statement in ast.parse(block).body:
            used = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
            if used & OF_FASTAI:
                continue
            ran += 1
            text = ast.unparse(statement)
            if isinstance(statement, ast.Expr):
                found = eval(text, space)
                results[text] = found if isinstance(found, camkit.Explanation) else list(found)
            else:
                exec(text, space)
    assert ran >= 15 and all(results.values())
    labels = results["camkit.explain_many(model, dataset, targets='labels')"]
    assert [one.class_name for one in labels] == ["dog", "cat", "dog", "cat"]
