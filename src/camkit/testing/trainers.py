"""Checks of trainers, on a data set that any model can learn."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from camkit.contracts.trainer import Trainer, TrainRequest
from camkit.errors import CamkitError
from camkit.explaining.explain import explain
from camkit.models.loading import load_model
from camkit.testing.kit import Subject, raises
from camkit.training.recipe import table

TOY_CLASSES = ("blue", "green", "red")


def toy_photos(folder: Path, per_class: int = 8) -> Path:
    """A data set that any model can learn: noisy pictures in three colours, a sub-folder for each."""
    from PIL import Image

    draw = np.random.default_rng(0)
    for index, name in enumerate(TOY_CLASSES):
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            pixels = draw.integers(0, 60, (48, 48, 3), dtype=np.uint8)
            pixels[..., 2 - index] += 180
            Image.fromarray(pixels).save(folder / name / f"{name}_{number}.png")
    return folder


def check_trains(subject: Subject) -> None:
    """An easy data set is learnt: the error is below a third, and the loss falls."""
    with _training(subject) as (_, result):
        error = result.metrics.get("error_rate")
        assert error is not None, f"metrics {dict(result.metrics)} must hold error_rate"
        assert error < 1 / 3, f"the error on a trivial data set is {error:.0%}"
        losses = [epoch["train_loss"] for epoch in result.history if "train_loss" in epoch]
        assert len(losses) < 2 or losses[-1] < losses[0], f"the training loss does not fall: {losses}"


def check_bundle_written(subject: Subject) -> None:
    """The bundle is inside `out`, loads without the trainer, and keeps the class names in order."""
    with _training(subject) as (request, result):
        assert result.bundle.resolve().is_relative_to(request.out.resolve()), "the bundle is outside out"
        loaded = load_model(result.bundle, device="cpu")
        assert loaded.classes == TOY_CLASSES, f"classes {loaded.classes}, not {TOY_CLASSES}"
        for index, name in enumerate(TOY_CLASSES):
            photo = min((Path(request.data) / name).iterdir())
            explained = explain(loaded, photo)
            assert explained.predicted_index == index, (
                f"a {name} picture is called {explained.predicted_name}"
            )


def check_seed(subject: Subject) -> None:
    """The same seed gives the same weights on the CPU."""
    hashes = []
    for _ in range(2):
        with _training(subject) as (_request, result):
            hashes.append(load_model(result.bundle, device="cpu").sha256)
    assert hashes[0] == hashes[1], "two trainings with one seed give different weights"


def check_nothing_outside(subject: Subject) -> None:
    """Nothing is written outside `out`, and the data are untouched."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        data = toy_photos(home / "data")
        before = _contents(data)
        _train(subject, data, home / "out")
        assert _contents(data) == before, "the data folder is changed"
        assert sorted(p.name for p in home.iterdir()) == ["data", "out"], "files outside out"


def _contents(folder: Path) -> dict[Path, bytes | None]:
    """Everything in a folder, with the bytes of the files."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def check_bad_data(subject: Subject) -> None:
    """No folder, an empty one, one class or a broken picture: a `CamkitError` naming it, and no bundle."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        (home / "empty").mkdir()
        one = toy_photos(home / "one")
        for colour in TOY_CLASSES[1:]:
            for photo in (one / colour).iterdir():
                photo.unlink()
            (one / colour).rmdir()
        broken = toy_photos(home / "broken")
        (broken / "red" / "red_0.png").write_bytes(b"no picture")
        for data in (home / "missing", home / "empty", one, broken):
            out = home / f"out-{data.name}"
            with raises(CamkitError, f"the data {data.name!r}"):
                _train(subject, data, out)
            assert not list(out.rglob("camkit.json")), f"a bundle is left although {data.name!r} is refused"


class _Interrupted(BaseException):
    """Like Ctrl-C: no trainer may take it for one of its own errors."""


def check_interrupt(subject: Subject) -> None:
    """Interrupted at its first, middle or last report of progress, it leaves a loadable bundle or none.

    After the middle one, `resume` gives the weights of an uninterrupted training, on the CPU.
    """
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        data = toy_photos(home / "data")
        calls: list[float] = []
        _, uninterrupted = _train(
            subject, data, home / "whole", progress=lambda fraction, _: calls.append(fraction)
        )
        assert calls, "progress is never called, so users cannot see how far training is"
        expected = load_model(uninterrupted.bundle, device="cpu").sha256
        middle = (len(calls) + 1) // 2
        for stop in sorted({1, middle, len(calls)}):
            out = home / f"out-{stop}"
            with raises(_Interrupted, f"an interrupt at report {stop}"):
                _train(subject, data, out, progress=_interrupting(stop))
            bundles = [config.parent for config in out.rglob("camkit.json")]
            for bundle in bundles:
                load_model(bundle, device="cpu")
            if stop == middle and not bundles:
                _, resumed = _train(subject, data, out, resume=True)
                sha256 = load_model(resumed.bundle, device="cpu").sha256
                assert sha256 == expected, (
                    f"resuming after report {stop} of {len(calls)} gives other weights"
                )


def _interrupting(report: int) -> Callable[[float, str], None]:
    count = iter(range(1, 1_000_000))

    def progress(_: float, __: str) -> None:
        if next(count) == report:
            raise _Interrupted

    return progress


def _train(subject: Subject, data: Path, out: Path, **fields: Any) -> Any:
    trainer: Trainer = subject.make()
    settings: dict[str, Any] = {"weights": "none", "device": "cpu", **subject.request, **fields}
    settings["recipe"] = table(trainer, settings.get("recipe"))
    request = TrainRequest(data=str(data), out=out, **settings)
    return request, trainer.train(request)


@contextmanager
def _training(subject: Subject) -> Iterator[Any]:
    with tempfile.TemporaryDirectory() as name:
        yield _train(subject, toy_photos(Path(name) / "data"), Path(name) / "out")
