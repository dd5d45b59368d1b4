"""All that a plugin may import: the contracts, and what camkit's own plugins are made with.

    from camkit.plugin import Explainer, Query, forward

It stays as it is within a version of the plugin API. Errors are in `camkit.errors`, checks in
`camkit.testing`. Names are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from camkit.contracts.detections import Detections
    from camkit.contracts.engine import Engine, Outcome, Part, Photograph, Work, Worker
    from camkit.contracts.explainer import Explainer, Query, Sweep
    from camkit.contracts.metric import MapBatch, Metric, Scores
    from camkit.contracts.model import LoadedModel, ModelSource
    from camkit.contracts.options import NoOptions, option
    from camkit.contracts.trainer import Trainer, TrainRequest, TrainResult
    from camkit.core.class_names import class_index
    from camkit.core.devices import pick_device, pick_dtype, random_state_kept
    from camkit.core.hooks import forward
    from camkit.core.layer_lookup import map_layers
    from camkit.core.layout import layout_of
    from camkit.core.scored import classifier
    from camkit.core.stand_in import StandIn, wide
    from camkit.drawing import colours
    from camkit.explaining.class_maps import ClassMaps, explain_classes
    from camkit.explaining.past_run import PastRun, past_run
    from camkit.explaining.prediction import Prediction, predict
    from camkit.images.addresses import contents
    from camkit.images.decoding import Photo
    from camkit.images.decoding import load as load_image
    from camkit.images.decoding import sample as sample_image
    from camkit.images.finding import expand as find_images
    from camkit.images.preprocess import Preprocess
    from camkit.images.workers import photo_reader
    from camkit.metrics import controls
    from camkit.metrics.measure import measure
    from camkit.models import fastai_architecture
    from camkit.models.bundle import save_bundle
    from camkit.models.fastai import FastaiSource
    from camkit.models.loading import told_classes
    from camkit.models.timm import TimmSource
    from camkit.models.torchvision import TorchvisionSource
    from camkit.models.ultralytics import read_network as yolo_network
    from camkit.models.weights import put_weights, read_weights
    from camkit.registry.discovery import names as plugin_names
    from camkit.registry.loading import make
    from camkit.training import dataset, finetune, objective, recipe
    from camkit.training.run_folder import Run, is_main, report_line

# Where each name is from, and what it is called there: nothing for a module itself.
_HOMES = {
    "ClassMaps": "camkit.explaining.class_maps:ClassMaps",
    "Detections": "camkit.contracts.detections:Detections",
    "Engine": "camkit.contracts.engine:Engine",
    "Explainer": "camkit.contracts.explainer:Explainer",
    "FastaiSource": "camkit.models.fastai:FastaiSource",
    "LoadedModel": "camkit.contracts.model:LoadedModel",
    "MapBatch": "camkit.contracts.metric:MapBatch",
    "Metric": "camkit.contracts.metric:Metric",
    "ModelSource": "camkit.contracts.model:ModelSource",
    "NoOptions": "camkit.contracts.options:NoOptions",
    "Outcome": "camkit.contracts.engine:Outcome",
    "Part": "camkit.contracts.engine:Part",
    "PastRun": "camkit.explaining.past_run:PastRun",
    "Photo": "camkit.images.decoding:Photo",
    "Photograph": "camkit.contracts.engine:Photograph",
    "Prediction": "camkit.explaining.prediction:Prediction",
    "Preprocess": "camkit.images.preprocess:Preprocess",
    "Query": "camkit.contracts.explainer:Query",
    "Run": "camkit.training.run_folder:Run",
    "Scores": "camkit.contracts.metric:Scores",
    "StandIn": "camkit.core.stand_in:StandIn",
    "Sweep": "camkit.contracts.explainer:Sweep",
    "TimmSource": "camkit.models.timm:TimmSource",
    "TorchvisionSource": "camkit.models.torchvision:TorchvisionSource",
    "TrainRequest": "camkit.contracts.trainer:TrainRequest",
    "TrainResult": "camkit.contracts.trainer:TrainResult",
    "Trainer": "camkit.contracts.trainer:Trainer",
    "Work": "camkit.contracts.engine:Work",
    "Worker": "camkit.contracts.engine:Worker",
    "class_index": "camkit.core.class_names:class_index",
    "classifier": "camkit.core.scored:classifier",
    "colours": "camkit.drawing.colours:",
    "contents": "camkit.images.addresses:contents",
    "controls": "camkit.metrics.controls:",
    "dataset": "camkit.training.dataset:",
    "explain_classes": "camkit.explaining.class_maps:explain_classes",
    "fastai_architecture": "camkit.models.fastai_architecture:",
    "find_images": "camkit.images.finding:expand",
    "finetune": "camkit.training.finetune:",
    "forward": "camkit.core.hooks:forward",
    "is_main": "camkit.training.run_folder:is_main",
    "layout_of": "camkit.core.layout:layout_of",
    "load_image": "camkit.images.decoding:load",
    "make": "camkit.registry.loading:make",
    "map_layers": "camkit.core.layer_lookup:map_layers",
    "measure": "camkit.metrics.measure:measure",
    "objective": "camkit.training.objective:",
    "option": "camkit.contracts.options:option",
    "past_run": "camkit.explaining.past_run:past_run",
    "photo_reader": "camkit.images.workers:photo_reader",
    "pick_device": "camkit.core.devices:pick_device",
    "pick_dtype": "camkit.core.devices:pick_dtype",
    "plugin_names": "camkit.registry.discovery:names",
    "predict": "camkit.explaining.prediction:predict",
    "put_weights": "camkit.models.weights:put_weights",
    "random_state_kept": "camkit.core.devices:random_state_kept",
    "read_weights": "camkit.models.weights:read_weights",
    "recipe": "camkit.training.recipe:",
    "report_line": "camkit.training.run_folder:report_line",
    "sample_image": "camkit.images.decoding:sample",
    "save_bundle": "camkit.models.bundle:save_bundle",
    "told_classes": "camkit.models.loading:told_classes",
    "wide": "camkit.core.stand_in:wide",
    "yolo_network": "camkit.models.ultralytics:read_network",
}

__all__ = [
    "ClassMaps",
    "Detections",
    "Engine",
    "Explainer",
    "FastaiSource",
    "LoadedModel",
    "MapBatch",
    "Metric",
    "ModelSource",
    "NoOptions",
    "Outcome",
    "Part",
    "PastRun",
    "Photo",
    "Photograph",
    "Prediction",
    "Preprocess",
    "Query",
    "Run",
    "Scores",
    "StandIn",
    "Sweep",
    "TimmSource",
    "TorchvisionSource",
    "TrainRequest",
    "TrainResult",
    "Trainer",
    "Work",
    "Worker",
    "class_index",
    "classifier",
    "colours",
    "contents",
    "controls",
    "dataset",
    "explain_classes",
    "fastai_architecture",
    "find_images",
    "finetune",
    "forward",
    "is_main",
    "layout_of",
    "load_image",
    "make",
    "map_layers",
    "measure",
    "objective",
    "option",
    "past_run",
    "photo_reader",
    "pick_device",
    "pick_dtype",
    "plugin_names",
    "predict",
    "put_weights",
    "random_state_kept",
    "read_weights",
    "recipe",
    "report_line",
    "sample_image",
    "save_bundle",
    "told_classes",
    "wide",
    "yolo_network",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'camkit.plugin' has no attribute {name!r}")
    home, _, attribute = _HOMES[name].partition(":")
    module = importlib.import_module(home)
    return globals().setdefault(name, getattr(module, attribute) if attribute else module)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
