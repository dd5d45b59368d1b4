"""Small networks and data that several test files use."""

from __future__ import annotations

import gc
import inspect
import os
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from camkit.errors import CamkitError
from camkit.native import cache

# As many processes as cores run tests, and the networks are small: threads would wait for each other. So
# here, and in the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

# Files of tests that start processes, compile, train, build networks of libraries, open a browser, or run
# the command line or the conformance kit for each case. `make quick` leaves them out, and with them the
# plugins and single tests that are marked slow.
SLOW = set(
    "test_all_layers test_attention test_bench test_bench_page test_bench_strangers "
    "test_bench_published test_bench_subjects test_libra "
    "test_black_box test_cli test_compile_cache test_compiled test_docs test_early_checks "
    "test_endurance test_engines test_explain_folder test_families test_fastai_model "
    "test_fuzz test_hostile_folders test_input_gradients test_installed_plugins "
    "test_metrics_plugins test_models test_object_seen test_odd_files test_own_weights "
    "test_rebuilding test_result_folder test_run_page test_score_targets test_scoreboard "
    "test_segmentation test_strangers test_tail test_terminal test_testing "
    "test_torch_file_check test_training test_training_data test_training_failures "
    "test_training_page test_wheel test_winograd test_workers test_your_model".split()
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what takes long."""
    for item in items:
        if item.path.stem in SLOW or "plugins" in item.path.parts:
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """What the libraries and the tests are made of stays: the collector need not look at it each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compilers keep things in the cache of the user, or in one for this run where that is not safe."""
    with pytest.MonkeyPatch.context() as patch:
        try:
            cache.folder()
        except CamkitError:
            patch.setenv(cache.VARIABLE, str(tmp_path_factory.mktemp("cache")))
        yield


def is_of_page(path: Path) -> bool:
    """Whether what lies in a folder of results belongs to its page, which is made of all else."""
    return "thumbs" in (path.name, path.parent.name) or path.match("index*.html")


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file in a folder of results and below, but those of its page, by name."""
    files = (path for path in folder.rglob("*") if path.is_file() and not is_of_page(path))
    return {str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest() for path in files}


CLASSES = ("tabby", "Egyptian cat", "golden retriever", "red fox")

# A package that loads models: small ones, broken ones, and that of the lesson.
SOURCE = f"""
import os
import time
import warnings
from camkit import LoadedModel, ModelSource, Preprocess
from camkit.errors import ModelError

CLASSES = {CLASSES!r}

class Tiny(ModelSource):
    summary = "small models for tests"

    def load(self, reference, *, device, trust):
        import torch
        from torch import nn

        if reference == "raises":
            raise RuntimeError("the disk is on fire\\nand the rest of it")
        if reference == "memory":
            raise MemoryError
        if reference == "pickled" and not trust:
            raise ModelError("the weights are a pickle: allow it with --trust-pickle")
        if reference == "noisy":
            warnings.warn("a library is deprecated")
        if reference == "lesson":
            from benchmarks.lesson import lesson_model

            names = tuple(f"breed {{i}}" for i in range(37))
            return LoadedModel(lesson_model(), names, Preprocess(size=(64, 64)), name="tiny:lesson")
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            net = nn.Sequential()
            net.stem = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU())
            net.body = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.Tanh())
            net.pool = nn.AdaptiveAvgPool2d(1)
            net.flat = nn.Flatten()
            net.fc = nn.Linear(8, 4)
        if reference == "flat":  # no feature matters
            net.fc.weight.data.zero_()
        if reference in ("nan", "-inf"):
            net.fc.bias.data[3] = float(reference)
        names = CLASSES[:3] if reference == "miscounted" else CLASSES
        if reference == "many":
            net.fc, names = nn.Linear(8, 12), tuple(f"breed {{i}}" for i in range(12))
        if pause := float(os.environ.get("TINY_PAUSE", 0)):  # of each forward: so that a run lasts
            net.register_forward_pre_hook(lambda *_: time.sleep(pause))
        return LoadedModel(net.eval(), names, Preprocess(size=(32, 32)), name=f"tiny:{{reference}}")

    def names(self):
        return [f"net{{i}}" for i in range(50_000)]  # more than a pipe holds
"""


@pytest.fixture(autouse=True)
def _quiet_machine() -> Iterator[None]:
    """One thread and a fixed seed, whatever ran before."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield


@pytest.fixture
def pets() -> Path:
    """The folder of the Oxford-IIIT Pet sample."""
    folder = os.environ.get("CAMKIT_PETS")
    if not folder:
        pytest.skip("CAMKIT_PETS names no folder with pets (images/ and annotations/)")
    return Path(folder)


@pytest.fixture
def other_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An installed package whose explainer `other` is native with a further method and other options."""
    folder = tmp_path / "site"
    info = folder / "camkit_other-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: camkit-other\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[camkit.explainers]\nother = camkit_other:Other\n")
    (folder / "camkit_other.py").write_text(
        "from dataclasses import dataclass\n"
        "from camkit import Query, option\n"
        "from camkit.native.explainer import Native, NativeOptions\n"
        "@dataclass(frozen=True)\n"
        "class Options(NativeOptions):\n"
        "    size: int = option(1, help='of nothing')\n"
        "class Other(Native):\n"
        "    summary = 'for tests'\n"
        "    methods = ('gradcam', 'extra')\n"
        "    Options = Options\n"
        "    def many(self, sweep):\n"
        "        maps = Native(self.options).many(sweep)\n"
        "        return {key: value + self.options.size - 1 for key, value in maps.items()}\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    return "other"


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed packages with the model source `tiny`."""
    folder = tmp_path_factory.mktemp("site")
    info = folder / "camkit_tiny-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: camkit-tiny\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[camkit.models]\ntiny = camkit_tiny:Tiny\n")
    (folder / "camkit_tiny.py").write_text(SOURCE)
    return folder


@pytest.fixture
def here(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder where one is, with these plugins only."""
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("CAMKIT_PLUGINS", "camkit-tiny,camkit-other")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def runner() -> CliRunner:
    """Runs commands in this process and keeps stdout and stderr apart, which click 8.1 must be told."""
    apart = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}
    return CliRunner(**apart)  # type: ignore[arg-type]


class SmallNet(nn.Module):
    """Two convolutions, global mean, one linear layer: `[B, 3, H, W]` to `[B, classes]`."""

    def __init__(self, classes: int = 5, *, inplace: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(inplace=inplace))
        self.body = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8))
        self.act = nn.ReLU(inplace=inplace)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        x = self.pool(self.act(self.body(self.stem(x)))).flatten(1)
        return self.fc(self.drop(x))


@pytest.fixture
def small_net() -> SmallNet:
    """In eval mode, seeded."""
    return SmallNet().eval()


@pytest.fixture
def batch() -> Tensor:
    """Three images of 16 x 12 pixels."""
    return torch.randn(3, 3, 16, 12, generator=torch.Generator().manual_seed(1))
