"""Every row of the table in docs/your-model.md: the file is made, and gives the scores of its owner."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from packaging.version import Version
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import Tensor, nn
from torchvision import transforms

import camkit
from camkit.errors import CamkitWarning, UsageError
from camkit.models.fastai import FastaiSource

# What is assumed of the models is told; here it is meant.
pytestmark = pytest.mark.filterwarnings("ignore:.*assumed:camkit.errors.CamkitWarning")

PAGE = Path(__file__).parent.parent / "docs" / "your-model.md"
NAMES = ("cat", "dog", "newt")
# Small networks that one library alone has, and one that both have.
TORCHVISION, TIMM, BOTH = "shufflenet_v2_x0_5", "test_resnet", "resnet18"


def tv(name: str = TORCHVISION, **options: Any) -> Any:
    torch.manual_seed(0)
    return torchvision.models.get_model(name, weights=None, num_classes=3, **options).eval()


def tm(name: str = TIMM, **options: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=3, **options).eval()


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


class Ways:
    """How each row comes about: a file in `folder`; returns the spec, the module, and more arguments."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, content: Any, name: str = "w.pth") -> str:
        torch.save(content, self.folder / name)
        return str(self.folder / name)

    def wrapped(self, wrap: Callable[[dict[str, Tensor]], Any], name: str = "w.pth") -> Any:
        module = tv()
        return self.save(wrap(module.state_dict()), name), module

    def headed(self, *layers: nn.Module) -> Any:
        module = tv(BOTH)
        module.fc = layers[0] if len(layers) == 1 else nn.Sequential(*layers)
        return self.save(module.eval().state_dict()), module

    def safetensors(self, **metadata: str) -> Any:
        module = tv()
        save_file(module.state_dict(), self.folder / "w.safetensors", metadata=metadata or None)
        return str(self.folder / "w.safetensors"), module

    def beside(self, name: str, text: str) -> Any:
        (self.folder / name).write_text(text)
        return self.wrapped(lambda state: state)

    def half(self) -> Any:
        module = tv().half().float()
        return self.save(
            {n: t.half() if t.is_floating_point() else t for n, t in module.state_dict().items()}
        ), module

    def backbone(self) -> Any:
        body, head = tv(BOTH), nn.Linear(512, 3)
        body.fc = nn.Identity()
        state = prefixed("backbone.", body.state_dict()) | prefixed("head.", head.state_dict())
        return self.save(state), nn.Sequential(body, head)

    def grey(self, module: Any) -> Any:
        return self.save(module.state_dict()), module

    def grey_torchvision(self) -> Any:
        module = tv(BOTH)
        module.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
        return self.save(module.state_dict()), module

    def plain(self, module: Any, name: str = "w.pth", **more: Any) -> Any:
        return self.save(module.state_dict(), name), module, more

    def many_channels(self, module: Any, stem: str, count: int) -> Any:
        first = module.get_submodule(stem)
        made = nn.Conv2d(
            count, first.out_channels, first.kernel_size, first.stride, first.padding, bias=False
        )
        module.set_submodule(stem, made)
        numbers = {"mean": (0.4,) * count, "std": (0.2,) * count}
        return self.save(module.eval().state_dict()), module, numbers

    def of_timm(self, module: Any, *, scheme: str = "", safe: bool = True, named: bool = True) -> Any:
        config = {"label_names": list(NAMES)} if named else {}
        save_for_hf(module, str(self.folder / "net"), model_config=config, safe_serialization=safe)
        return f"{scheme}{self.folder / 'net'}", module

    def of_the_hub(self) -> Any:
        """Where the client keeps what it has fetched."""
        _, module = self.of_timm(tm())
        there = self.folder / "models--someone--net"
        (there / "refs").mkdir(parents=True)
        (there / "refs" / "main").write_text("abc")
        (self.folder / "net").rename(there / "net")
        (there / "snapshots").mkdir()
        (there / "net").rename(there / "snapshots" / "abc")
        return "timm:hf-hub:someone/net", module

    def named(self, source: str, module: Any) -> Any:
        return f"{source}@{self.save(module.state_dict())}", module

    def fastai(self, reference: str, *, change: Callable[[nn.Sequential], Any] | None = None) -> Any:
        module = camkit.load_model(f"fastai:{reference}@none", device="cpu").module
        assert isinstance(module, nn.Sequential)
        if change is not None:
            change(module)
        return self.save({"model": module.state_dict(), "opt": {"state": [], "hypers": []}}), module

    def own_head(self) -> Any:
        def change(module: Any) -> None:
            module[1] = nn.Sequential(
                nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 9), nn.ReLU(), nn.Linear(9, 3)
            )

        return self.fastai(BOTH, change=change)

    def fastai_grey(self) -> Any:
        def change(module: Any) -> None:
            module[0][0] = nn.Conv2d(1, 64, 7, 2, 3, bias=False)

        return self.fastai(BOTH, change=change)

    def fastai_1(self) -> Any:
        body = {"source": "torchvision", "name": BOTH}
        module = FastaiSource().build({"backbone": body, "num_classes": 3, "bn_final": True, "bias": True})
        return self.save({"model": module.state_dict(), "opt": {}}), module

    def fastai_timm(self) -> Any:
        spec, module = self.fastai(f"timm:{BOTH}")
        return f"fastai:timm:{BOTH}@{spec}", module

    def bundle(self) -> Any:
        spec, module = self.wrapped(lambda state: state)
        return camkit.save_bundle(camkit.load_model(spec, device="cpu"), self.folder / "bundle"), module

    def own_class(self, wrap: Callable[[dict[str, Tensor]], Any], name: str) -> Any:
        layers = "nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)"
        (self.folder / "mine.py").write_text(
            "from torch import nn\n\n\nclass Net(nn.Sequential):\n    def __init__(self):\n"
            f"        super().__init__({layers})\n"
        )
        module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
        return f"mine.py:Net@{self.save(wrap(module.state_dict()), name)}", module

    def function(self, name: str, spec: str) -> Any:
        (self.folder / name).write_text(
            "import torch, torchvision\n\n\ndef build():\n    torch.manual_seed(0)\n"
            f"    return torchvision.models.{TORCHVISION}(num_classes=3)\n"
        )
        return spec, tv()


WAYS: dict[str, Callable[[Ways], Any]] = {
    "a state dict of torchvision": lambda w: w.wrapped(lambda s: s),
    "a state dict of timm": lambda w: w.plain(tm()),
    "a state dict in safetensors": lambda w: w.safetensors(),
    "weights in half precision": Ways.half,
    "a checkpoint with `state_dict`": lambda w: w.wrapped(lambda s: {"state_dict": s, "epoch": 3}),
    "a checkpoint with `model` and an optimizer": lambda w: w.wrapped(
        lambda s: {"model": s, "optimizer": {"lr": 1}}
    ),
    "a checkpoint with `model_state_dict`": lambda w: w.wrapped(lambda s: {"model_state_dict": s}),
    "a checkpoint with `model_state`": lambda w: w.wrapped(lambda s: {"model_state": s}),
    "a checkpoint with `net`": lambda w: w.wrapped(lambda s: {"net": s, "acc": 0.9}),
    "a checkpoint with `weights`": lambda w: w.wrapped(lambda s: {"weights": s}),
    "a checkpoint with averaged weights, `ema`": lambda w: w.wrapped(
        lambda s: {"ema": s, "model": {n: torch.zeros_like(t) for n, t in s.items()}}
    ),
    "a checkpoint of DataParallel": lambda w: w.wrapped(lambda s: prefixed("module.", s)),
    "a checkpoint of `torch.compile`": lambda w: w.wrapped(lambda s: prefixed("_orig_mod.", s)),
    "a checkpoint of Lightning": lambda w: w.wrapped(
        lambda s: {"state_dict": prefixed("model.", s), "pytorch-lightning_version": "2.4"}, "w.ckpt"
    ),
    "a checkpoint of Lightning with `class_names` in its settings": lambda w: w.wrapped(
        lambda s: {"state_dict": prefixed("net.", s), "hyper_parameters": {"class_names": list(NAMES)}},
        "w.ckpt",
    ),
    "a checkpoint of Lightning with weights of the loss": lambda w: w.wrapped(
        lambda s: {"state_dict": {**prefixed("model.", s), "criterion.weight": torch.ones(3)}}, "w.ckpt"
    ),
    "a checkpoint of timm's training": lambda w: w.wrapped(
        lambda s: {
            "arch": TORCHVISION,
            "state_dict": s,
            "args": argparse.Namespace(lr=0.1),
            "metric": np.float64(0.5),
        },
        "w.pth.tar",
    ),
    "`class_to_idx` in the checkpoint": lambda w: w.wrapped(
        lambda s: {"model": s, "class_to_idx": {"newt": 2, "cat": 0, "dog": 1}}
    ),
    "classes in the head of a safetensors file": lambda w: w.safetensors(class_names=json.dumps(NAMES)),
    "`classes.txt` beside the file": lambda w: w.beside("classes.txt", "cat\ndog\nnewt\n"),
    "`labels.json` beside the file": lambda w: w.beside("labels.json", '["cat", "dog", "newt"]'),
    "`data.yaml` of ultralytics, names of classes": lambda w: (
        *w.beside("data.yaml", "nc: 3\nnames: [cat, dog, newt]\n"),
        {"classes": "data.yaml"},
    ),
    "`img_size`, `mean` and `std` in the checkpoint": lambda w: w.wrapped(
        lambda s: {"model": s, "img_size": 160, "mean": [0.5] * 3, "std": [0.5] * 3}
    ),
    "`preprocessor_config.json` beside the file": lambda w: w.beside(
        "preprocessor_config.json",
        '{"image_processor_type": "ViTImageProcessor", "size": {"height": 160, "width": 160},'
        ' "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "resample": 3}',
    ),
    "a new head: Linear": lambda w: w.headed(nn.Linear(512, 3)),
    "a new head: Dropout, Linear": lambda w: w.headed(nn.Dropout(), nn.Linear(512, 3)),
    "a new head: two Linear": lambda w: w.headed(nn.Linear(512, 9), nn.ReLU(), nn.Linear(9, 3)),
    "a new head: Linear, BatchNorm, ReLU, Linear": lambda w: w.headed(
        nn.Linear(512, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Dropout(), nn.Linear(9, 3)
    ),
    "a network as `backbone` with a head beside it": Ways.backbone,
    "one-channel photographs, torchvision": Ways.grey_torchvision,
    "one-channel photographs, timm": lambda w: w.grey(tm(in_chans=1)),
    "photographs of four channels, torchvision": lambda w: w.many_channels(tv(), "conv1.0", 4),
    "photographs of thirteen channels, timm": lambda w: w.many_channels(tm(), "conv1.0", 13),
    "GoogLeNet without its helper heads": lambda w: w.plain(
        tv("googlenet", aux_logits=False, init_weights=False)
    ),
    "GoogLeNet with its helper heads": lambda w: w.plain(tv("googlenet", init_weights=False)),
    "a vision transformer for another size": lambda w: w.plain(tm("test_vit", img_size=96)),
    "one of several architectures, named by the file": lambda w: w.plain(
        tm("tf_efficientnet_b0"), "tf_efficientnet_b0.pth"
    ),
    "one of several architectures": lambda w: w.plain(
        tm("tf_efficientnet_b0"), arch="timm:tf_efficientnet_b0"
    ),
    "weights for a network of torchvision": lambda w: w.named(f"torchvision:{BOTH}", tv(BOTH)),
    "weights for a network of timm": lambda w: w.named(f"timm:{BOTH}", tm(BOTH)),
    "what `learn.save` of fastai wrote": lambda w: w.fastai(BOTH),
    "what `learn.save` wrote, of a body of timm": lambda w: w.fastai(TIMM),
    "what `learn.save` wrote, with a head of its own": Ways.own_head,
    "what `learn.save` wrote, for a body that both libraries have": Ways.fastai_timm,
    "what `learn.save` wrote, of one channel": Ways.fastai_grey,
    "what `learn.save` of fastai 1 wrote": Ways.fastai_1,
    "a whole model, `torch.save(model)`": lambda w: (w.save(tv()), tv(), {"trust_pickle": True}),
    "a bundle of camkit, or a folder of `camkit train`": Ways.bundle,
    "a folder of timm": lambda w: w.of_timm(tm()),
    "a folder of timm with `pytorch_model.bin`": lambda w: w.of_timm(tm(), safe=False),
    "a folder of timm without names of classes": lambda w: w.of_timm(tm(), scheme="timm:", named=False),
    "a folder of timm for photographs of five channels": lambda w: w.of_timm(tm(in_chans=5)),
    "a name of the hub that timm wrote": Ways.of_the_hub,
    "a class of your own, and its state dict": lambda w: w.own_class(lambda s: s, "w.pth"),
    "the same in a checkpoint of Lightning, with `class_names`": lambda w: w.own_class(
        lambda s: {
            "state_dict": {**prefixed("net.", s), "loss.weight": torch.ones(3)},
            "hyper_parameters": {"class_names": list(NAMES)},
        },
        "w.ckpt",
    ),
    "a function that returns the model": lambda w: w.function("mine.py", "mine.py:build"),
    "a function of an installed package": lambda w: w.function("mine_too.py", "mine_too:build"),
}
ELSEWHERE = {
    "what `learn.export` of fastai wrote": "plugins/camkit-fastai/tests/test_exports.py",
    "a folder of transformers": "plugins/camkit-huggingface/tests",
    "CLIP or SigLIP": "plugins/camkit-huggingface/tests",
    "a CLIP of open_clip": "plugins/camkit-open-clip/tests",
    "a folder of transformers around a network of timm": "tests/test_timm_folder.py",
    "`best.pt` of ultralytics' `yolo classify train`": "tests/test_ultralytics.py",
}


def rows() -> list[str]:
    """What the table in the page says one may have."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    return [line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("| ")][1:]


def test_every_row_of_the_table_is_tried() -> None:
    assert set(rows()) == {*WAYS, *ELSEWHERE}
    assert len(rows()) >= 40
    for place in ELSEWHERE.values():
        assert (PAGE.parent.parent / place).exists()


@pytest.mark.parametrize("way", WAYS)
def test_the_scores_are_those_of_the_owner(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way.endswith("of five channels") and Version(timm.__version__) < Version("1.0.31"):
        pytest.skip("older releases of timm do not write the number of channels")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    spec, module, *more = WAYS[way](Ways(tmp_path))
    model = camkit.load_model(spec, device="cpu", **(more[0] if more else {}))
    images = torch.rand(2, model.preprocess.channels, *model.preprocess.size)
    with torch.no_grad():
        torch.testing.assert_close(model.module(images), module.eval()(images), atol=1e-5, rtol=1e-4)
    row = next(
        line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| {way} |")
    )
    assert (model.classes == NAMES) == ("classes are known" in row)


def test_transforms_for_training_are_refused() -> None:
    random = transforms.Compose([transforms.RandomResizedCrop(32), transforms.ToTensor()])
    with pytest.raises(UsageError, match="something else of the same photograph each time"):
        camkit.load_model(
            nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), preprocess=random
        )


def test_a_class_has_random_weights_and_that_is_told(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Sequential):\n    def __init__(self):\n"
        "        super().__init__(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n\n\n"
        "def build():\n    return Net()\n"
    )
    with pytest.warns(CamkitWarning):
        told = camkit.load_model(f"{tmp_path / 'own.py'}:Net", device="cpu").note
    assert "Net is a class: its weights are random" in told
    with pytest.warns(CamkitWarning):
        assert "random" not in camkit.load_model(f"{tmp_path / 'own.py'}:build", device="cpu").note
