"""Classifiers of ultralytics: probabilities as of `YOLO.predict`. Skipped where it is not installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import camkit
from camkit.errors import ModelError


@pytest.fixture
def yolo() -> Any:
    ultralytics = pytest.importorskip("ultralytics", reason="ultralytics is not installed")
    torch.manual_seed(0)
    made = ultralytics.YOLO("yolov8n-cls.yaml", verbose=False)
    for name, tensor in made.model.state_dict().items():
        if name.endswith("running_var"):  # so that not all classes are alike
            tensor.uniform_(0.05, 0.3)
    made.model.eval()
    return made


def test_predictions_equal_those_of_yolo(yolo: Any, tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    yolo.model.args = {"imgsz": 96, "task": "classify"}
    torch.save({"model": yolo.model.half(), "ema": None, "train_args": {"imgsz": 96}}, path)
    model = camkit.load_model(path, device="cpu")
    reader = type(yolo)(path)
    for seed in range(20):
        generator = np.random.default_rng(seed)
        width, height = (int(side) for side in generator.integers(60, 300, 2))
        small = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        small.resize((width, height), Image.Resampling.BICUBIC).save(tmp_path / "p.png")
        theirs = reader.predict(tmp_path / "p.png", imgsz=96, verbose=False)[0].probs.data
        ours = camkit.explain(model, tmp_path / "p.png")
        assert ours.class_index == int(theirs.argmax())
        assert ours.probability == pytest.approx(float(theirs.max()), abs=1e-4)
    again = camkit.load_model(camkit.save_bundle(model, tmp_path / "bundle"), device="cpu")
    kept = camkit.explain(again, tmp_path / "p.png")
    assert (kept.class_name, kept.probability) == (ours.class_name, ours.probability)


def test_layers_that_no_classifier_has_are_refused(yolo: Any, tmp_path: Path) -> None:
    yolo.model.yaml = {**yolo.model.yaml, "head": [[-1, 1, "Path", ["/"]]]}
    torch.save({"model": yolo.model}, tmp_path / "best.pt")
    with pytest.raises(ModelError, match="'Path'"):
        camkit.load_model(tmp_path / "best.pt", device="cpu")


def test_an_activation_is_not_run_as_code(yolo: Any, tmp_path: Path) -> None:
    """Ultralytics evaluates that text."""
    for text, fits in {
        "nn.ReLU()": True,
        "torch.nn.LeakyReLU(0.1)": True,
        f"open({str(tmp_path / 'made')!r}, 'w')": False,
        "nn.ReLU(open('x','w'))": False,
        "nn.ReLU()\n": False,
    }.items():
        yolo.model.yaml = {**yolo.model.yaml, "activation": text}
        torch.save({"model": yolo.model}, tmp_path / "best.pt")
        if fits:
            camkit.load_model(tmp_path / "best.pt", device="cpu")
        else:
            with pytest.raises(ModelError, match="which is none of torch"):
                camkit.load_model(tmp_path / "best.pt", device="cpu")
    assert not (tmp_path / "made").exists()
