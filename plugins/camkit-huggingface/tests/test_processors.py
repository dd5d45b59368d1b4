"""What camkit reads of `preprocessor_config.json` without transformers is what their processors show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from camkit_huggingface.processor import shown

from camkit.models import processor_config

HALVES = [0.5, 0.5, 0.5]
PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "squash": ("ViTImageProcessor", {"size": {"height": 96, "width": 80}, "image_mean": HALVES}),
    "shorter side and cut": (
        "CLIPImageProcessor",
        {"size": {"shortest_edge": 90}, "crop_size": {"height": 80, "width": 80}},
    ),
    "as it comes": ("BitImageProcessor", {}),
    "not normalised": ("ViTImageProcessor", {"size": {"height": 96, "width": 96}, "do_normalize": False}),
    "another filter": ("DeiTImageProcessor", {"resample": 2}),
    "a share": ("ConvNextImageProcessor", {"size": {"shortest_edge": 192}, "crop_pct": 0.875}),
    "without a share": ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}}),
}


@pytest.mark.parametrize("kind", PROCESSORS)
def test_a_table_means_what_its_processor_shows(kind: str, tmp_path: Path) -> None:
    name, settings = PROCESSORS[kind]
    processor = getattr(transformers, name)(**settings)
    processor.save_pretrained(tmp_path)
    table = json.loads((tmp_path / processor_config.NAME).read_text("utf-8"))
    assert processor_config.read(table) == shown(processor)[0]
