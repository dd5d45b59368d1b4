"""Models of open_clip: the same probabilities as by its own code, from texts, classes and photographs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import camkit
from camkit.cli import cli
from camkit.errors import CamkitWarning, ModelError, ModelNotFound, UsageError

open_clip = pytest.importorskip("open_clip")
published = pytest.importorskip("camkit_open_clip.published")

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
VIT = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 2}
KINDS: dict[str, dict[str, Any]] = {
    "vit-tiny": {"embed_dim": 16, "vision_cfg": VIT, "text_cfg": TEXT},
    "rn-tiny": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8},
        "text_cfg": TEXT,
    },
    "sig-tiny": {"embed_dim": 16, "init_logit_bias": -10, "vision_cfg": VIT, "text_cfg": TEXT},
}


@pytest.fixture(autouse=True)
def _small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small networks among those that open_clip knows, and two photographs."""
    monkeypatch.chdir(tmp_path)
    configs = dict(open_clip.factory._MODEL_CONFIGS)
    paths = list(open_clip.factory._MODEL_CONFIG_PATHS)
    for name, config in KINDS.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(config))
        open_clip.add_model_config(tmp_path / f"{name}.json")
    for seed, name in enumerate(("a.png", "b.png")):
        noise = np.random.default_rng(seed).integers(0, 256, (40, 52, 3), dtype=np.uint8)
        Image.fromarray(noise).save(name)
    yield
    open_clip.factory._MODEL_CONFIGS.clear()
    open_clip.factory._MODEL_CONFIGS.update(configs)
    open_clip.factory._MODEL_CONFIG_PATHS[:] = paths


def saved(kind: str) -> tuple[Any, Any]:
    """A model of open_clip whose weights lie in `w.pt`, and its transform."""
    torch.manual_seed(1)
    made, _, transform = open_clip.create_model_and_transforms(kind)
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in made.state_dict().items()}}, "w.pt")
    return made.eval(), transform


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli, ["explain", "a.png", "--workers", "0", *arguments])


@pytest.mark.parametrize("kind", KINDS)
def test_texts_and_classes_as_open_clip_compares_them(kind: str) -> None:
    made, transform = saved(kind)
    asked = ["a cat", "owls, asleep"]
    done = run("--model", f"open-clip:{kind}@w.pt", "--text", asked[0], "--text", asked[1], "--json")
    assert done.exit_code == 0, done.output
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["class_name"] for line in told] == asked
    assert told[0]["model_spec"] == f"open-clip:{kind}@w.pt?texts=a cat,owls%2C asleep"
    with torch.no_grad():
        image = made.encode_image(transform(Image.open("a.png"))[None], normalize=True)
        texts = made.encode_text(open_clip.get_tokenizer(kind)(asked), normalize=True)
    logits = image @ texts.t() * made.logit_scale.exp() + (made.logit_bias or 0)
    expected = logits.sigmoid() if kind == "sig-tiny" else logits.softmax(1)
    found = torch.tensor([line["probability"] for line in told])
    assert torch.allclose(found, expected[0], atol=1e-5)
    assert "2 recomputed maps" in CliRunner().invoke(cli, ["verify", "camkit-out"]).output
    named = camkit.load_model(f"open-clip:{kind}@w.pt", device="cpu", classes=["cat", "owl"])
    prompts = camkit.load_model(
        f"open-clip:{kind}@w.pt?texts=a photo of a cat.,a photo of a owl.", device="cpu"
    )
    assert named.classes == ("cat", "owl") and named.sha256 == prompts.sha256


def test_of_one_text_it_is_the_similarity() -> None:
    saved("vit-tiny")
    done = run("--model", "open-clip:vit-tiny@w.pt", "--text", "a cat", "--json")
    line = json.loads(done.stdout)
    assert line["scores"] == "none" and line["probability"] is None and line["logit"] != 0
    assert np.load(Path("camkit-out", line["map_file"])).max() != 0


def test_likeness_to_a_photograph() -> None:
    made, transform = saved("rn-tiny")
    done = run("--model", "open-clip:rn-tiny@w.pt", "--like", "b.png", "--json")
    assert done.exit_code == 0, done.output
    with torch.no_grad():
        a, b = (
            made.encode_image(transform(Image.open(name))[None], normalize=True)[0]
            for name in ("a.png", "b.png")
        )
    assert json.loads(done.stdout)["logit"] == pytest.approx(float(a @ b), abs=1e-5)


@pytest.mark.parametrize(
    ("spec", "error", "said"),
    [
        ("rn-tiny@none", ModelError, "needs texts to tell apart: --text"),
        ("rn-tiny", ModelError, "a model is NAME@PRETRAINED, NAME@FILE or NAME@none"),
        ("rn-tinny@none?texts=a", ModelNotFound, "no model 'rn-tinny'; did you mean 'rn-tiny'"),
        ("RN50@opnai?texts=a", ModelNotFound, "no such weights of RN50; did you mean 'openai'"),
        ("vit-tiny@w.pt?texts=a", ModelError, r"w\.pt.*"),  # the weights of another network
    ],
)
def test_what_is_not_there_is_named(spec: str, error: type[Exception], said: str) -> None:
    saved("rn-tiny")
    with pytest.raises(error, match=said) as caught:
        camkit.load_model(f"open-clip:{spec}", device="cpu")
    assert "\n" not in str(caught.value)


def test_two_ways_to_tell_it_the_classes() -> None:
    with pytest.raises(UsageError, match="is told its classes twice"):
        camkit.load_model("open-clip:rn-tiny@none?texts=a", classes=["cat"])


def test_the_transform_for_inference_is_that_of_open_clip() -> None:
    _, transform = saved("vit-tiny")
    model = camkit.load_model("open-clip:vit-tiny@w.pt?embedding", device="cpu")
    photo = Image.open("a.png")
    assert torch.equal(model.preprocess(photo), transform(photo))
    assert model.scores == "none" and len(model.classes) == 16


@pytest.mark.parametrize(("count", "fits"), [(75, True), (76, False), (2000, False)])
def test_a_text_that_would_be_cut_is_refused(count: int, fits: bool) -> None:
    """A text has two tokens more than words: its first and its last."""
    saved("vit-tiny")
    text = " ".join(["cat"] * count)
    done = run("--model", "open-clip:vit-tiny@w.pt", "--text", text, "--text", "a dog")
    assert done.exit_code == (0 if fits else 2), done.output
    assert fits or f"a text is longer than the 77 tokens that the model reads: '{text}'" in done.stderr


HALVES = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic", "resize_mode": "squash"}


def test_weights_of_a_file_are_shown_what_those_of_its_name_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of SigLIP, which open_clip itself shows a file of photographs with the colours of CLIP."""
    saved("sig-tiny")
    known = open_clip.pretrained._PRETRAINED
    monkeypatch.setitem(known, "sig-tiny", {"one": {"url": "", **HALVES}, "two": {"url": "", **HALVES}})
    with pytest.warns(CamkitWarning, match=r"std 0.5,0.5,0.5 \(.*shown as the published weights of sig-"):
        model = camkit.load_model("open-clip:sig-tiny@w.pt?embedding", device="cpu")
    assert model.preprocess.mean == (0.5,) * 3 and model.preprocess.fit == "squash" and not model.is_sure
    monkeypatch.setitem(known, "sig-tiny", {"one": {"url": "", **HALVES}, "two": {"url": ""}})
    with pytest.warns(CamkitWarning, match="as usual, and some published weights of sig-tiny otherwise"):
        model = camkit.load_model("open-clip:sig-tiny@w.pt?embedding", device="cpu")
    assert model.preprocess.mean[0] == pytest.approx(0.48145466) and model.preprocess.fit == "crop"


def test_weights_of_a_file_that_may_need_the_quick_gelu(monkeypatch: pytest.MonkeyPatch) -> None:
    saved("vit-tiny")
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "vit-tiny", {"one": {"quick_gelu": True}})
    with pytest.warns(CamkitWarning, match="built with the exact GELU"):
        camkit.load_model("open-clip:vit-tiny@w.pt?embedding", device="cpu")


def test_what_is_said_of_names_that_open_clip_publishes() -> None:
    """Found in its own tables: the names that most people have."""
    said = {name: published.of_file(name) for name in ("ViT-B-32", "ViT-B-32-quickgelu", "ViT-B-16-SigLIP")}
    assert "(ViT-B-32-quickgelu@FILE)" in said["ViT-B-32"].notes["variant"]
    assert said["ViT-B-32-quickgelu"] == published.NOTHING
    assert said["ViT-B-16-SigLIP"].shown["mean"] == (0.5,) * 3
