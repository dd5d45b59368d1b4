"""Detectors of ultralytics: boxes as of `YOLO.predict`. Skipped where it is not installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from camkit_yolo import Reader, YoloSource
from PIL import Image

import camkit
from camkit.errors import ModelError

CPU = torch.device("cpu")


def test_boxes_that_a_better_one_covers_are_left_out() -> None:
    """By hand, of three anchors and two classes: the second covers most of the first."""
    anchors = torch.tensor([[8, 8, 10, 10, 0.5, 0.1], [8, 9, 10, 10, 0.8, 0.1], [8, 8, 10, 10, 0.1, 0.6]])
    found = Reader(2)((anchors.t()[None].requires_grad_(), None))
    assert found.labels.tolist() == [[0, 1]] and found.scores.tolist()[0] == pytest.approx([0.8, 0.6])
    assert found.boxes.tolist() == [[[3, 4, 13, 14], [3, 3, 13, 13]]] and found.scores.requires_grad
    ends = Reader(2)(torch.tensor([[[3.0, 4, 13, 14, 0.8, 1]]]))
    assert (ends.labels.tolist(), ends.boxes.tolist()) == ([[1]], [[[3, 4, 13, 14]]])


@pytest.mark.parametrize("name", ["yolov8n", "yolo11n", "yolo26n"])
def test_boxes_are_those_of_yolo(name: str, tmp_path: Path) -> None:
    ultralytics: Any = pytest.importorskip("ultralytics", reason="ultralytics is not installed")
    torch.manual_seed(0)
    made = ultralytics.YOLO(f"{name}.yaml", verbose=False)
    for key, tensor in made.model.state_dict().items():
        if key.endswith("running_var"):  # so that not all boxes are alike
            tensor.uniform_(0.05, 0.3)
    head = made.model.model[-1]
    for boxes, classes in zip(head.cv2, head.cv3, strict=True):  # scores of a few per cent, without ties
        boxes[-1].weight.data.mul_(0.01)
        classes[-1].weight.data.mul_(0.001 if name == "yolo26n" else 1)
        torch.nn.init.constant_(classes[-1].bias, -2.0)
    made.model.args = {"imgsz": 96, "task": "detect"}
    torch.save({"model": made.model, "ema": None, "train_args": {"imgsz": 96}}, tmp_path / "best.pt")
    model = YoloSource().load(str(tmp_path / "best.pt"), device=CPU, trust=False)
    assert model.preprocess.size == (96, 96) and len(model.classes) == 80
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    found = list(camkit.explain_many(model, [image], box=[1, 2], min_score=0.01, method="hirescam"))
    options = {"imgsz": 96, "conf": 0.01, "verbose": False, "device": "cpu"}
    theirs = made.predict(image, **options)[0].boxes
    assert [r.class_index for r in found] == theirs.cls[:2].int().tolist()
    for result, score, box in zip(found, theirs.conf, theirs.xyxy, strict=False):
        assert result.box is not None and result.probability == pytest.approx(float(score), abs=1e-3)
        assert result.map.shape == (3, 3) and bool(result.map.any())
        inside = torch.tensor(result.box.corners).clamp(0, 96)
        assert torch.allclose(inside, box, atol=0.2)


def test_other_tasks_are_refused(tmp_path: Path) -> None:
    ultralytics: Any = pytest.importorskip("ultralytics", reason="ultralytics is not installed")
    made = ultralytics.YOLO("yolov8n-seg.yaml", verbose=False)
    torch.save({"model": made.model}, tmp_path / "best.pt")
    with pytest.raises(ModelError, match="SegmentationModel"):
        YoloSource().load(str(tmp_path / "best.pt"), device=CPU, trust=False)
