"""`camkit bench published`: the protocols of papers, on small data of the same form."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image
from scipy.stats import spearmanr
from tests.conftest import runner
from torch import Tensor

from camkit.bench import published, published_funnybirds, published_voc
from camkit.bench.published_task import Figure, Task
from camkit.cli import cli
from camkit.errors import ModelError, UsageError
from camkit.metrics import localisation
from camkit.models import torchray


def call(*words: str) -> Result:
    return runner().invoke(cli, ["bench", "published", *words])


def by_name(rows: Iterable[Figure]) -> dict[str, Figure]:
    return {row.name: row for row in rows}


# --- FunnyBirds ---------------------------------------------------------------------------------------

PARTS = ("beak", "eye", "foot", "tail", "wing")
KINDS = ((0, 0, 0, 0, 0), (0, 0, 1, 1, 1), (2, 2, 0, 0, 2), (3, 3, 3, 3, 0))
WORTH = dict(zip(PARTS, (5.0, 4.0, 3.0, 2.0, -1.0), strict=True))
THINGS = (2.0, 0.0)  # what two things behind a bird are worth to the first class, and to no other
# The class that each bird is said to be of, and the one that it looks like.
BIRDS = ((0, 0), (0, 0), (1, 1), (2, 2), (3, 1))
SIDE = 48
# Each of a pair counts what lies within two pixels, and these lie side by side.
TWICE = {"eye": 2, "foot": 2, "wing": 2}
PLACES = {part: (4 + 12 * (i % 2), 4 + 14 * (i // 2)) for i, part in enumerate(PARTS)}
MAPPED = {"beak": [(255, 255, 0)], "tail": [(0, 0, 255)], "eye": [(255, 255, 253), (255, 255, 254)]}
MAPPED |= {"foot": [(255, 0, 1), (255, 0, 2)], "wing": [(0, 255, 1), (0, 255, 2)]}

# A part is a square of four columns, of which its variant has one white; a thing is a blue pixel.
MODEL = f"""
import torch
from torch import nn
from camkit import LoadedModel, Preprocess

KINDS, WORTH, THINGS, PLACES, SIDE = {KINDS!r}, {WORTH!r}, {THINGS!r}, {PLACES!r}, {SIDE!r}

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3 * SIDE * SIDE, len(KINDS), bias=False)
        weight = torch.zeros(len(KINDS), 3, SIDE, SIDE)
        for kind, variants in enumerate(KINDS):
            for (part, worth), variant in zip(WORTH.items(), variants):
                y, x = PLACES[part]
                weight[kind, 0, y : y + 4, x + variant] = worth / 4
        for i, worth in enumerate(THINGS):
            weight[0, 2, 44, 4 + 10 * i] = worth
        self.fc.weight = nn.Parameter(weight.flatten(1))
    def forward(self, x):
        return self.fc(x.flatten(1))

def birds():
    return LoadedModel(Net().eval(), tuple("abcd"), Preprocess(size=(SIDE, SIDE)), name="birds")
"""


def painted(kind: int, parts: Iterable[str], things: Iterable[int]) -> Image.Image:
    """A bird; what is transparent keeps its colour."""
    pixels = np.zeros((SIDE, SIDE, 4), np.uint8)
    for part in parts:
        y, x = PLACES[part]
        pixels[y : y + 4, x + KINDS[kind][PARTS.index(part)], :3] = 255, 0, 0
    for i in things:
        pixels[44, 4 + 10 * i, 2] = 255
    return Image.fromarray(pixels)


def part_map() -> Image.Image:
    pixels = np.zeros((SIDE, SIDE, 4), np.uint8)
    for part, colours in MAPPED.items():
        y, x = PLACES[part]
        for i, colour in enumerate(colours):
            rows = slice(y + 2 * i, y + 4)
            pixels[rows, x : x + 4, :3] = colour
    for i in range(len(THINGS)):
        pixels[44, 4 + 10 * i, :3] = 204, 204, 204 + i
    return Image.fromarray(pixels)


@pytest.fixture
def funny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test set in small: the same folders, names and kinds of pictures."""
    monkeypatch.chdir(tmp_path)
    Path("birds.py").write_text(MODEL)
    folder = tmp_path / "FunnyBirds"
    folder.mkdir()
    (folder / "parts.json").write_text(json.dumps({part: [{"model": "a"}] for part in PARTS}))
    classes = [
        {"class_idx": i, "parts": dict(zip(PARTS, kind, strict=True))} for i, kind in enumerate(KINDS)
    ]
    (folder / "classes.json").write_text(json.dumps(classes))
    birds = [{"class_idx": said, "bg_objects": "7,23", "bg_radius": "1,2"} for said, _ in BIRDS]
    (folder / "dataset_test.json").write_text(json.dumps(birds))
    for index, (said, kind) in enumerate(BIRDS):
        number = f"{index:06d}"
        others = folder / "test_interventions" / str(said) / number
        (others / "background_interventions").mkdir(parents=True)
        for name in ("test", "test_part_map"):
            (folder / name / str(said)).mkdir(parents=True, exist_ok=True)
        painted(kind, PARTS, (0, 1)).save(folder / "test" / str(said) / f"{number}.png")
        part_map().save(folder / "test_part_map" / str(said) / f"{number}.png")
        for kept in subsets():
            painted(kind, kept, (0, 1)).save(others / f"body_{'_'.join(sorted(kept))}.png")
        for i in (0, 1):
            painted(kind, PARTS, {0, 1} - {i}).save(others / "background_interventions" / f"{i}.png")
    return folder


def subsets() -> list[tuple[str, ...]]:
    return [parts for size in range(len(PARTS) + 1) for parts in itertools.combinations(PARTS, size)]


def said_by_hand(kind: int, looks: int, parts: Iterable[str], things: Iterable[int] = (0, 1)) -> float:
    """The score that the model gives class `kind` for a bird that looks like class `looks`."""
    at = {part: i for i, part in enumerate(PARTS)}
    own = sum(WORTH[part] for part in parts if KINDS[kind][at[part]] == KINDS[looks][at[part]])
    return own + sum(THINGS[i] for i in things if kind == 0)


def winner(looks: int, parts: Iterable[str]) -> int:
    kept = tuple(parts)
    return max(range(len(KINDS)), key=lambda kind: said_by_hand(kind, looks, kept))


def figures_by_hand() -> dict[str, float]:
    """The paper's protocols with what is known of the model: its map is what each part is worth."""
    curves: dict[str, list[list[float]]] = {"check": [], "kept": [], "gone": [], "calm": []}
    background, ranks = [], []
    for said, looks in BIRDS:

        def worth(kind: int, looks: int = looks) -> dict[str, float]:
            whole = said_by_hand(kind, looks, PARTS)
            parts = {p: whole - said_by_hand(kind, looks, set(PARTS) - {p}) for p in PARTS}
            return parts | {
                f"bg_{i:03d}": whole - said_by_hand(kind, looks, PARTS, {0, 1} - {i}) for i in (0, 1)
            }

        shares = np.linspace(0.01, 0.5, 80)
        own, guess = worth(said), worth(winner(looks, PARTS))
        total, guessed = sum(own.values()), sum(guess.values())
        chosen = [{p for p, v in own.items() if v * TWICE.get(p, 1) > total * share} for share in shares]
        picked = [{p for p in PARTS if guess[p] * TWICE.get(p, 1) > guessed * share} for share in shares]
        if winner(looks, PARTS) == said:
            differ = [
                set(parts)
                for parts in subsets()
                if all(
                    any(KINDS[k][PARTS.index(p)] != KINDS[said][PARTS.index(p)] for p in parts)
                    for k in range(len(KINDS))
                    if k != said
                )
            ]
            least = [one for one in differ if not any(other < one for other in differ)]
            curves["check"].append([max(len(one & parts) / len(one) for one in least) for parts in chosen])
        same = winner(looks, PARTS)
        curves["kept"].append([float(winner(looks, parts) == same) for parts in picked])
        curves["gone"].append([float(winner(looks, set(PARTS) - parts) != same) for parts in picked])
        bound = 0.05 * abs(said_by_hand(said, looks, PARTS))
        idle = {name for name, drop in own.items() if abs(drop) < bound or drop < 0}
        if idle:  # the last bird has a score of 0, of which nothing is a twentieth
            curves["calm"].append([1 - len(idle & parts) / len(idle) for parts in chosen])
        background += [float(not (own[f"bg_{i:03d}"] >= bound and own[f"bg_{i:03d}"] > 0)) for i in (0, 1)]
        if any(own[p] for p in PARTS):
            found = [own[p] * TWICE.get(p, 1) for p in PARTS]
            ranks.append(0.5 + 0.5 * spearmanr([own[p] for p in PARTS], found).statistic)
    means = {name: np.mean(rows, 0) for name, rows in curves.items()}
    sums = (means["check"] + means["kept"] + means["gone"]) / 3 + means["calm"]
    at = {name: float(curve[int(sums.argmax())]) for name, curve in means.items()}
    right = [float(winner(looks, PARTS) == said) for said, looks in BIRDS]
    return {
        "accuracy": float(np.mean(right)),
        "controlled synthetic data check": at["check"],
        "preservation check": at["kept"],
        "deletion check": at["gone"],
        "distractibility": at["calm"],
        "background independence": float(np.mean(background)),
        "single deletion": float(np.mean(ranks)),
        "target sensitivity": 1.0,
    }


def test_the_eight_figures_of_funnybirds_are_those_of_its_protocols(funny: Path) -> None:
    result = call("funnybirds", str(funny), "--model", "birds.py:birds", "--json")
    assert result.exit_code == 0, result.stderr
    found = {row["name"]: row for row in json.loads(result.stdout)["figures"]}
    assert {name: row["value"] for name, row in found.items()} == pytest.approx(figures_by_hand())
    assert found["accuracy"]["value"] == 0.8
    assert found["background independence"]["value"] == 0.8  # the first thing counts for the first class
    assert found["target sensitivity"]["count"] == 4  # two birds have two classes that share other parts
    assert found["controlled synthetic data check"]["count"] == 4
    assert found["distractibility"]["published"] == 0.54372


def test_another_method_has_no_published_figure_and_a_trial_says_that_it_is_one(funny: Path) -> None:
    words = ["funnybirds", str(funny), "--model", "birds.py:birds", "--method", "saliency", "--limit", "2"]
    result = call(*words)
    assert result.exit_code == 0, result.stderr
    lines = {line.split("  ")[0]: line.split() for line in result.stdout.splitlines()}
    assert lines["distractibility"][-2] == "-"
    assert lines["accuracy"][-2] == "0.9980"  # of the model, whatever the method
    assert "only the first 2 photographs" in result.stderr


def test_parts_that_tell_a_class_from_all_others_are_found_in_the_smallest_sets() -> None:
    kinds = [{"a": 0, "b": 0, "c": 0}, {"a": 0, "b": 1, "c": 1}, {"a": 1, "b": 0, "c": 1}]
    assert {*published_funnybirds.sufficient_parts(kinds, 0)} == {frozenset("c"), frozenset("ab")}


@pytest.mark.parametrize("name", ["parts.json", "classes.json", "dataset_test.json"])
@pytest.mark.parametrize("text", ["{}", "[", '[{"class_idx": "x"}]'])
def test_a_damaged_data_set_is_one_line(funny: Path, name: str, text: str) -> None:
    (funny / name).write_text(text)
    with pytest.raises(UsageError, match="FunnyBirds"):
        published_funnybirds.Birds.read(funny)


def test_a_missing_picture_is_named(funny: Path) -> None:
    (funny / "test_interventions" / "1" / "000002" / "background_interventions" / "1.png").unlink()
    result = call("funnybirds", str(funny), "--model", "birds.py:birds")
    assert result.exit_code == 1
    assert "background_interventions/1.png" in result.stderr


# --- Pascal VOC ---------------------------------------------------------------------------------------


def voc(folder: Path, objects: dict[str, list[tuple[str, tuple[int, int, int, int], bool]]]) -> Path:
    """A development kit of 2007 with photographs of 300 x 200 and these objects: name, box, difficult."""
    year = folder / "VOCdevkit" / "VOC2007"
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (year / name).mkdir(parents=True)
    (year / "ImageSets" / "Main" / "test.txt").write_text("\n".join(objects) + "\n")
    for name, those in objects.items():
        Image.fromarray(np.full((200, 300, 3), 90, np.uint8)).save(year / "JPEGImages" / f"{name}.jpg")
        tags = "".join(
            f"<object><name>{kind}</name><difficult>{int(hard)}</difficult><bndbox><xmin>{x0}</xmin>"
            f"<ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox>"
            # A person's head is no object of its own.
            "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>300</xmax><ymax>200</ymax>"
            "</bndbox></part></object>"
            for kind, (x0, y0, x1, y1), hard in those
        )
        (year / "Annotations" / f"{name}.xml").write_text(f"<annotation>{tags}</annotation>")
    return year.parent


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file as TorchRay's, of a smaller network."""
    from torchvision.models.resnet import Bottleneck, ResNet

    def small(num_classes: int) -> ResNet:
        return ResNet(Bottleneck, [1, 1, 1, 1], num_classes, width_per_group=8)

    monkeypatch.setattr("torchvision.models.resnet50", small)
    torch.manual_seed(0)
    state = torchray.CaffeResNet50(20).state_dict()
    kept = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    for name in [name for name in kept if ".running_" in name or "bn" in name or "downsample.1" in name]:
        front, _, last = name.rpartition(".")
        kept[f"{front}.{0 if 'running' in last else 1}.{last}"] = kept.pop(name)
    kept["conv1.weight"] = kept["conv1.weight"].flip(1)
    torch.save(kept, tmp_path / "resnet50_voc.pth.tar")
    return tmp_path / "resnet50_voc.pth.tar"


def test_gradcam_of_torchrays_network_is_torchrays(weights: Path) -> None:
    """Its gradient of a class is spread over all windows of 7 x 7 places by softmax."""
    network = torchray.load(weights)
    torch.manual_seed(1)
    inputs = torchray.seen(torch.rand(3, 200, 340) * 255)
    assert inputs.shape == (1, 3, 224, 380)
    found = Task(Path(), "", "native", layer="layer4").maps(network, inputs, [3, 7], "gradcam")
    x = network.maxpool(network.relu(network.bn1(network.conv1(inputs))))
    acts = network.layer4(network.layer3(network.layer2(network.layer1(x))))
    places = torch.nn.functional.conv2d(
        torch.nn.functional.avg_pool2d(acts, 7, 1), network.fc.weight[:, :, None, None], network.fc.bias
    )
    for row, kind in enumerate((3, 7)):
        spread = torch.zeros_like(places)
        spread[0, kind] = places[0, kind].exp() / places[0, kind].exp().sum()
        (gradient,) = torch.autograd.grad(places, acts, spread, retain_graph=True)
        wanted = (acts * gradient.mean((2, 3), keepdim=True)).sum(1)[0].detach()
        assert torch.allclose(found[row], wanted, atol=1e-5 * float(wanted.abs().max()))
    assert torch.allclose(network(inputs), places.flatten(2).logsumexp(2), atol=1e-5)


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(ModelError, match="resnet50_voc"):
        torchray.load(tmp_path / "other.pth")


def test_a_hit_is_less_than_fifteen_pixels_from_a_box() -> None:
    mask = torch.zeros(60, 60, dtype=torch.bool)
    mask[20:30, 20:30] = True
    assert published_voc.is_hit(mask, (29, 43))
    assert not published_voc.is_hit(mask, (29, 44))
    assert published_voc.is_hit(mask, (29 + 10, 29 + 11))  # 14.9
    assert not published_voc.is_hit(mask, (29 + 11, 29 + 11))  # 15.6


def test_the_pointing_game_counts_classes_alike_and_leaves_out_what_is_marked(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large, other = (1, 1, 20, 20), (1, 1, 300, 200), (280, 180, 300, 200)
    kit = voc(
        tmp_path,
        {
            "000001": [("cat", small, False), ("dog", other, False)],  # cat hit, dog missed, both difficult
            "000002": [("cat", small, False), ("cat", other, True)],  # hit; one class: not difficult
            "000003": [("cat", other, False)],  # missed
            "000004": [("cow", small, True)],  # left out
            "000005": [("dog", large, False), ("cow", other, True)],  # hit; large: not difficult
        },
    )

    def top_left(task: Task, module: object, inputs: Tensor, targets: list[int], method: str) -> Tensor:
        maps = torch.zeros(len(targets), 7, 10)
        maps[:, 0, 0] = 1
        return maps

    monkeypatch.setattr(Task, "maps", top_left)
    rows, remarks = published.run("voc07-pointing", Task(kit, str(weights), device="cpu"))
    assert remarks[0].endswith("photographs, the published figures of 4,952: do not compare them")
    found = by_name(rows)
    cat, dog = 2 / 3, 1 / 2
    assert found["gradcam, all"].value == pytest.approx((cat + dog) / 2)
    assert found["gradcam, all"].count == 5
    assert found["gradcam, difficult"].value == pytest.approx((1 + 0) / 2)
    assert found["gradcam, difficult"].count == 2
    assert found["centre, all"].value == pytest.approx((0 + 1 / 2) / 2)
    assert found["gradcam, all"].published == 0.904


def test_the_pointing_game_runs_from_the_command_line(tmp_path: Path, weights: Path) -> None:
    kit = voc(tmp_path, {"000001": [("cat", (1, 1, 20, 20), False)]})
    result = call("voc07-pointing", str(kit / "VOC2007"), "--model", str(weights), "--method", "layercam")
    assert result.exit_code == 0, result.stderr
    assert "layercam, all" in result.stdout
    assert "gradcam" not in result.stdout


def test_a_constant_map_is_no_hit() -> None:
    assert published_voc.highest(torch.zeros(7, 7), (20, 20)) is None
    assert published_voc.highest(torch.eye(2).flip(0), (20, 20)) == (0, 15)


COLOURS = """
import torch
from torch import nn
from camkit import LoadedModel, Preprocess

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(3, 2, 4, stride=4), nn.ReLU())
        with torch.no_grad():
            kernel = torch.tensor([[2.0, -1, -1], [-1, 2.0, -1]])
            self.conv[0].weight.copy_(kernel[:, :, None, None].expand(2, 3, 4, 4))
            self.conv[0].bias.zero_()
    def forward(self, x):
        return self.conv(x).mean((2, 3))

def colours():
    names = ("dog", "cat")
    return LoadedModel(Net().eval(), names, Preprocess(size=(32, 32)), name="colours", default_layer="conv")
"""


def test_masks_of_voc_2012_are_held_against_the_maps_of_their_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text(COLOURS)
    year = tmp_path / "VOC2012"
    for name in ("SegmentationClass", "JPEGImages", "ImageSets/Segmentation"):
        (year / name).mkdir(parents=True)
    (year / "ImageSets" / "Segmentation" / "val.txt").write_text("a\nb\n")
    pixels = np.full((64, 64, 3), 110, np.uint8)
    pixels[:32, :32], pixels[32:, 32:] = (250, 20, 20), (20, 250, 20)
    values = np.zeros((64, 64), np.uint8)
    values[:32, :32], values[32:, 32:], values[:32, 40:44] = 12, 8, 255  # dog, cat, a border
    for name, mask in {"a": values, "b": np.where(values == 8, 1, values)}.items():  # a plane: not known
        Image.fromarray(pixels).save(year / "JPEGImages" / f"{name}.jpg", quality=95)
        picture = Image.fromarray(mask, mode="P")
        picture.putpalette([0, 0, 0] * 256)
        picture.save(year / "SegmentationClass" / f"{name}.png")
    result = call("voc12-iou", str(year), "--model", "model.py:colours", "--method", "gradcam", "--json")
    assert result.exit_code == 0, result.stderr
    (row,) = json.loads(result.stdout)["figures"]
    assert row["count"] == 3
    from camkit.models.loading import load_quietly

    model = load_quietly("model.py:colours", device="cpu")
    task = Task(year, "model.py:colours", "native", ("gradcam",))
    photo = Image.open(year / "JPEGImages" / "a.jpg")
    maps = task.maps(model.module, model.preprocess(photo)[None], [0, 1], "gradcam")
    truth = torch.zeros(2, 32, 32, dtype=torch.bool)
    truth[0, :16, :16], truth[1, 16:, 16:] = True, True
    means = []
    for threshold in published_voc.THRESHOLDS:
        dog, cat = localisation.iou(maps, truth, threshold).tolist()
        means.append((2 * dog + cat) / 3)
    assert row["value"] == pytest.approx(max(means), abs=0.01)
    assert row["value"] > 0.8
    assert row["published"] == 0.39


# --- the command --------------------------------------------------------------------------------------


def test_without_arguments_it_lists_what_there_is_and_what_each_needs() -> None:
    result = call()
    assert result.exit_code == 0
    for name, benchmark in published.BENCHMARKS.items():
        assert name in result.stdout
        assert benchmark.data in result.stdout
        assert benchmark.model in result.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["funybirds"], "did you mean 'funnybirds'"),
        (["funnybirds"], "FunnyBirds.zip"),
        (["voc07-pointing", "."], "resnet50_voc"),
        (["voc07-pointing", ".", "--model", "pets"], "--model is a file here, TorchRay's resnet50_voc"),
        (
            ["funnybirds", ".", "--model", "pets", "--method", "saliency", "--method", "lime"],
            "one --method",
        ),
        (["voc07-pointing", ".", "--model", "x.pth", "--method", "gradcan"], "gradcam"),
        (["funnybirds", "nowhere", "--model", "pets"], "nowhere"),
        (["voc12-iou", ".", "--model", "pets"], "knows none of VOC's classes"),
        (["funnybirds", ".", "--model", "pets"], "parts.json"),
    ],
)
def test_wrong_usage_is_one_line(words: list[str], said: str) -> None:
    result = call(*words)
    assert result.exit_code == 2
    assert said in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 2
