"""What the server answers is what camkit computes."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import shlex
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import torch
from camkit_explorer import asking
from camkit_explorer.app import COMPUTED, create_app
from camkit_explorer.colours import NAMED, tables
from camkit_explorer.command import explore, sources
from camkit_explorer.jobs import Busy, Jobs
from camkit_explorer.models import Models, made
from camkit_explorer.pace import Pace
from camkit_explorer.packing import pack
from camkit_explorer.questions import SIDE
from camkit_explorer.security import Policy
from camkit_explorer.session import Given, Photographs, Session
from click.testing import CliRunner
from PIL import Image
from starlette.testclient import TestClient
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_pre_hooks

import camkit
from camkit import LoadedModel, Preprocess
from camkit.cli import cli
from camkit.errors import ImageError, ModelError, UsageError
from camkit.plugin import colours, sample_image

Header = dict[str, Any]


def unpacked(data: bytes) -> tuple[Header, np.ndarray[Any, Any]]:
    """The header and the maps `[T, h, w]`, read as the page does."""
    (length,) = struct.unpack_from("<I", data)
    header = json.loads(data[4 : 4 + length])
    count, shape = header["count"], (header["height"], header["width"])
    assert (4 + length) % 8 == 0
    scales = np.frombuffer(data, "<f8", count, 4 + length)
    halves = np.frombuffer(data, "<f2", offset=4 + length + 8 * count).reshape(count, *shape)
    return header, halves.astype(np.float64) * scales[:, None, None]


def client(app: Any, policy: Policy) -> TestClient:
    headers = {"origin": "http://127.0.0.1:80", "host": "127.0.0.1:80", "x-camkit-token": policy.token}
    return TestClient(app, headers=headers)


@pytest.fixture
def page(app: Any, policy: Policy) -> TestClient:
    return client(app, policy)


def inputs(model: LoadedModel) -> Tensor:
    return model.preprocess(camkit.plugin.load_image(sample_image()).image)[None]


def mask(cells: np.ndarray[Any, Any]) -> str:
    return base64.b64encode(np.packbits(cells.astype(np.uint8)).tobytes()).decode()


# --- maps -----------------------------------------------------------------------------------------


def test_the_maps_of_all_classes_come_at_once_and_are_camkits(
    page: TestClient, small: Callable[..., LoadedModel]
) -> None:
    answer = page.post("/api/maps", json={"photograph": 0, "layer": "high"})
    header, maps = unpacked(answer.content)
    model = small()
    expected = camkit.class_maps(model.module, inputs(model), layer="high")[0].numpy()
    assert header["classes"] == list(range(6)) and header["layer"] == "high"
    peaks = np.abs(expected).max((1, 2), keepdims=True)
    assert np.abs(maps - expected).max() <= peaks.max() * 2**-11
    assert (np.abs(maps - expected) <= peaks * 2**-11).all()
    scores = model.module(inputs(model))[0]
    np.testing.assert_allclose(header["scores"], scores.detach(), rtol=1e-4)
    np.testing.assert_allclose(header["likely"], scores.softmax(0).detach(), rtol=1e-3, atol=1e-6)
    assert header["predicted"] == [int(scores.argmax())] and header["of_score"]
    left, top, right, bottom = header["box"]
    assert left == pytest.approx(1 - right) and (top, bottom) == pytest.approx((0, 1))


def test_single_classes_other_layers_and_methods_can_be_asked_for(page: TestClient) -> None:
    header, maps = unpacked(page.post("/api/maps", json={"layer": "middle", "classes": [4, 2]}).content)
    assert header["classes"] == [4, 2] and maps.shape == (2, 16, 16)
    header, maps = unpacked(page.post("/api/maps", json={"method": "eigencam"}).content)
    assert header["shared"] and len(header["classes"]) == len(maps) == 1 and not header["of_score"]
    other, _ = unpacked(page.post("/api/maps", json={"model": 1}).content)
    assert other["scores"] != header["scores"]


@pytest.mark.parametrize("size", [1e-300, 1e-30, 1.0, 65505.0, 1e30, 1e300])
def test_no_map_overflows_or_vanishes_on_the_way(size: float) -> None:
    maps = torch.tensor([[[1.0, -2.0], [0.0, 3.0]], [[0.0] * 2] * 2], dtype=torch.float64) * size
    header, found = unpacked(pack({"name": "猫"}, maps))
    np.testing.assert_allclose(found, maps.numpy(), rtol=2**-10)
    assert header["name"] == "猫" and (header["count"], header["height"], header["width"]) == (2, 2, 2)


def test_the_session_tells_what_there_is(page: TestClient, small: Callable[..., LoadedModel]) -> None:
    said = page.get("/api/session").json()
    assert said["models"] == ["pets", "other.pth"] and said["model"]["name"] == "pets"
    assert said["model"]["classes"] == list(small().classes)
    layers = [(layer["name"], layer["grid"]) for layer in said["model"]["layers"]]
    assert layers == [("low", [32, 32]), ("middle", [16, 16]), ("high", [8, 8]), ("rest", [8, 8])]
    assert said["model"]["automatic"] == "high" and "native" in said["backends"]
    assert said["photographs"] == [{"number": 0, "name": "chelsea.png"}]
    assert all(len(colours) == 256 for colours in said["colours"].values())
    assert "gradcam" in page.get("/api/backends/native").json()["methods"]
    assert page.get("/api/backends/nothing").status_code == 422
    assert page.post("/api/model", json={"model": 1}).json()["name"] == "other.pth"
    for address in ("/api/models/0/photographs/0/picture", "/api/photographs/0/thumbnail"):
        picture = page.get(address)
        assert picture.headers["content-type"] == "image/jpeg" and picture.content[:2] == b"\xff\xd8"


def test_a_model_whose_photographs_a_function_prepares_shows_what_that_makes_of_them(
    read: Callable[..., Any], small: Callable[..., LoadedModel], policy: Policy
) -> None:
    sizes: list[tuple[int, int]] = []

    def corner(image: Image.Image) -> Tensor:
        sizes.append(image.size)
        cut = np.array(image.resize((128, 128)).crop((0, 0, 64, 64)))
        return torch.from_numpy(cut).permute(2, 0, 1) / 255

    usual = small()
    own = camkit.load_model(usual.module, preprocess=corner, classes=list(usual.classes))
    models = Models(("own", "pets"), {"own": own, "pets": usual}.__getitem__)
    photograph = Given("chelsea.png", sample_image())
    page = client(create_app(Session(models, Photographs([photograph], read)), policy), policy)
    header, maps = unpacked(page.post("/api/maps", json={"layer": "high"}).content)
    whole = camkit.plugin.load_image(sample_image()).image
    expected = camkit.class_maps(usual.module, corner(whole)[None], layer="high")[0].numpy()
    np.testing.assert_allclose(
        maps, expected[header["classes"]], atol=float(np.abs(expected).max()) * 2**-10
    )
    assert header["box"] == [0, 0, 1, 1] and set(sizes) == {(301, 203), whole.size}
    shown = {
        number: Image.open(
            io.BytesIO(page.get(f"/api/models/{number}/photographs/0/picture").content)
        ).convert("RGB")
        for number in (0, 1)
    }
    assert shown[1].size == whole.size and shown[0].size == (64, 64)
    seen = np.asarray(whole.resize((128, 128)).crop((0, 0, 64, 64)), dtype=float)
    assert np.abs(np.asarray(shown[0]) - seen).mean() < 5, "but for the JPEG"
    covered = page.post("/api/cover", json={"mask": mask(np.ones((SIDE, SIDE))), "fill": "blur"})
    assert covered.status_code == 200 and covered.json()["scores"] != header["scores"]
    dropped = page.post(
        "/api/photographs", content=sample_image().read_bytes(), headers={"x-name": "a.png"}
    )
    again = page.post("/api/maps", json={"layer": "high", "photograph": dropped.json()["number"]})
    assert unpacked(again.content)[0]["scores"] == header["scores"]


def test_a_function_that_fails_on_a_photograph_is_said(
    read: Callable[..., Any], small: Callable[..., LoadedModel], policy: Policy, png: Callable[..., bytes]
) -> None:
    def wide(image: Image.Image) -> Tensor:
        if image.width < image.height:
            raise KeyError("upright")
        return torch.zeros(3, 64, 64) + image.width / 1000

    usual = small()
    own = camkit.load_model(usual.module, preprocess=wide, classes=list(usual.classes))
    session = Session(Models(("own",), lambda spec: own), Photographs([], read))
    page = client(create_app(session, policy), policy)
    refused = page.post("/api/photographs", content=png((40, 60)), headers={"x-name": "a.png"})
    assert refused.status_code == 422 and "preprocess failed: KeyError" in refused.json()["error"]
    assert page.post("/api/photographs", content=png((60, 40))).status_code == 200


def test_a_model_that_fails_is_said_and_the_others_go_on(read: Callable[..., Any], small: Any) -> None:
    def load(spec: str) -> LoadedModel:
        if spec == "broken":
            raise ModelError("broken cannot be read: it is damaged")
        if spec == "odd":
            raise KeyError("inside")
        return small(spec)

    policy = Policy(80)
    models = Models(["pets", "broken", "odd"], load)
    app = create_app(Session(models, Photographs([Given("a", sample_image())], read)), policy)
    page = client(app, policy)
    assert page.post("/api/model", json={"model": 1}).json() == {
        "error": "broken cannot be read: it is damaged"
    }
    odd = page.post("/api/model", json={"model": 2})
    assert odd.status_code == 500 and odd.json()["error"] == "unexpected KeyError: 'inside'"
    assert page.post("/api/maps", json={}).status_code == 200


# --- comparing, covering, testing -----------------------------------------------------------------


def test_what_stands_beside_comes_with_its_agreement(page: TestClient) -> None:
    asked = {"layer": "high", "target": 1, "beside_method": "gradcam"}
    header, maps = unpacked(page.post("/api/beside", json=asked).content)
    assert header["spearman"] == 1 and header["difference"] == 0 and maps.shape == (1, 8, 8)
    header, other = unpacked(page.post("/api/beside", json={**asked, "beside_method": "layercam"}).content)
    assert -1 <= header["spearman"] < 1 and header["difference"] is None
    assert np.abs(other - maps).max() > 0


def test_behind_a_mean_and_a_linear_layer_the_map_predicts_exactly_what_a_silent_layer_costs(
    page: TestClient, small: Callable[..., LoadedModel]
) -> None:
    """The claim that the page makes of gradcam, for the part of the map that it sums up."""
    header, maps = unpacked(page.post("/api/maps", json={"layer": "high"}).content)
    model = small()
    silent = torch.zeros(8, 8, dtype=torch.bool)
    silent[2:5, 1:7] = True
    hook = model.module.high.register_forward_hook(lambda _, __, out: out.masked_fill(silent, 0))
    with torch.no_grad():
        without = model.module(inputs(model))[0].numpy()
    hook.remove()
    predicted = -maps[:, silent.numpy()].sum(1)
    np.testing.assert_allclose(without - np.array(header["scores"]), predicted, atol=2e-3)


@pytest.mark.parametrize("fill", ["blur", "colour"])
def test_covering_asks_the_model_about_the_changed_photograph(
    page: TestClient, small: Callable[..., LoadedModel], fill: str
) -> None:
    before, _ = unpacked(page.post("/api/maps", json={}).content)
    cells = np.zeros((SIDE, SIDE))
    untouched = page.post("/api/cover", json={"fill": fill, "mask": mask(cells)}).json()
    np.testing.assert_allclose(untouched["scores"], before["scores"], rtol=1e-4)
    cells[: SIDE // 2] = 1
    half = page.post("/api/cover", json={"fill": fill, "mask": mask(cells)}).json()
    model = small()
    changed = inputs(model)
    changed[:, :, :32] = asking.FILLS[fill](changed)[:, :, :32]
    expected = model.module(changed)[0]
    np.testing.assert_allclose(half["scores"], expected.detach(), rtol=1e-4, atol=1e-5)
    assert half["scores"] != untouched["scores"] and half["kind"] == "softmax"
    assert page.post("/api/cover", json={}).json()["error"] == "mask is missing"


def test_a_blur_keeps_what_is_even_and_a_mean_colour_is_one() -> None:
    even = torch.full((1, 3, 20, 30), 0.7)
    torch.testing.assert_close(asking.FILLS["blur"](even), even)
    noise = torch.randn(1, 3, 64, 64)
    assert asking.FILLS["blur"](noise).shape == noise.shape
    assert float(asking.FILLS["blur"](noise).std()) < 0.15 * float(noise.std())
    colour = asking.FILLS["colour"](noise)
    torch.testing.assert_close(colour[0, :, 0, 0], noise.mean((0, 2, 3)))
    assert float(colour.std((2, 3)).max()) < 1e-6


@pytest.mark.parametrize("size", [(128, 128), (224, 224), (65, 300)])
def test_a_mask_covers_the_pixels_whose_middle_lies_in_its_cells(size: tuple[int, int]) -> None:
    cells = np.zeros((SIDE, SIDE), bool)
    cells[10:50, 64:] = True
    full = asking.stretched(cells, size)
    rows = (np.arange(size[0]) + 0.5) / size[0] * SIDE
    columns = (np.arange(size[1]) + 0.5) / size[1] * SIDE
    expected = ((rows >= 10) & (rows < 50))[:, None] & (columns >= 64)[None]
    np.testing.assert_array_equal(full, expected)


def test_curves_come_with_their_controls_and_are_those_of_the_metric(page: TestClient) -> None:
    said = page.post("/api/curves", json={"target": 1}).json()
    assert said["names"] == ["map", "random", "centre"]
    header, _ = unpacked(page.post("/api/maps", json={}).content)
    for name in ("deletion", "insertion"):
        curves = np.array(said[name]["curves"])
        assert curves.shape == (3, 11)
        inner = curves[:, 1:-1].sum(1) + (curves[:, 0] + curves[:, -1]) / 2
        np.testing.assert_allclose(said[name]["areas"], inner / 10, rtol=1e-4)
    np.testing.assert_allclose(np.array(said["deletion"]["curves"])[:, 0], header["likely"][1], rtol=1e-3)
    np.testing.assert_allclose(np.array(said["insertion"]["curves"])[:, -1], header["likely"][1], rtol=1e-3)


def test_the_sanity_check_leaves_the_weights_as_they_were(session: Session, policy: Policy) -> None:
    page = client(create_app(session, policy), policy)
    module = session.models[0].model.module
    before = {name: value.clone() for name, value in module.state_dict().items()}
    header, maps = unpacked(page.post("/api/sanity", json={"layer": "high", "target": 1}).content)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert len(header["stages"]) == len(header["similarity"]) == 4 and maps.shape == (1, 8, 8)
    assert all(0 <= value <= 1 for value in header["similarity"]) and header["limit"] == 0.5
    assert header["passed"] == (header["similarity"][-1] < 0.5)
    learnt = unpacked(page.post("/api/maps", json={"layer": "high", "classes": [1]}).content)[1]
    assert np.abs(maps - learnt).max() > 0.1 * np.abs(learnt).max()


# --- what it costs --------------------------------------------------------------------------------


def test_all_classes_are_asked_for_where_that_is_measured_to_be_cheap() -> None:
    pace, key = Pace(forward=0.1), ("native", "gradcam", "high")
    assert not pace.all_at_once(key), "nothing is known"
    pace.note(key, 0.2, 10, 1000, 49)  # 10 s, as it seems
    assert not pace.all_at_once(key)
    pace.note(key, 0.13, 10, 1000, 49)  # 3 s
    assert pace.all_at_once(key)
    pace.note(key, 0.15, 1000, 1000, 49)
    pace.note(key, 9.0, 1000, 1000, 49)  # the machine was busy
    assert pace.all_at_once(key)
    dear = ("native", "gradcam", "low")
    pace.note(dear, 0.11, 10, 1000, 49)
    pace.note(dear, 2.0, 1000, 1000, 49)
    assert not pace.all_at_once(dear)
    large = ("native", "gradcam", "stem")
    pace.note(large, 0.1, 10, 1000, 112 * 112)
    assert not pace.all_at_once(large), "25 MB are no answer"


def test_a_brush_costs_one_forward(session: Session) -> None:
    ready, calls = session.models[0], [0]
    photo = session.photographs.read(session.photographs[0], ready.model.preprocess)
    question = asking.Question(mask=np.ones((SIDE, SIDE), bool))

    def count(*_: Any) -> None:
        calls[0] += 1

    hook = ready.model.module.register_forward_hook(count)
    asking.cover(ready, photo, question)
    hook.remove()
    assert calls == [1]


def test_a_model_without_a_layer_for_a_map_is_refused(small: Callable[..., LoadedModel]) -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 2)).eval()
    with pytest.raises(ModelError, match="flat has no layer that can carry a map"):
        made("flat", LoadedModel(flat, ("a", "b"), Preprocess((64, 64)), "flat"))


# --- jobs -----------------------------------------------------------------------------------------


@pytest.fixture
def blocked() -> Iterator[tuple[Callable[[], int], threading.Event]]:
    """A job that ends when its event is set."""
    event = threading.Event()

    def wait() -> int:
        assert event.wait(10)
        return 7

    yield wait, event
    event.set()


def test_jobs_are_done_one_after_the_other_and_a_queue_has_an_end(blocked: Any) -> None:
    wait, event = blocked
    order: list[int] = []

    async def all_of_them() -> list[Any]:
        jobs = Jobs(waiting=3, seconds=5)
        first = [asyncio.create_task(jobs.do(wait))]
        first += [asyncio.create_task(jobs.do(lambda n=n: order.append(n))) for n in (1, 2)]
        await asyncio.sleep(0.05)
        with pytest.raises(Busy, match="3 questions wait"):
            await jobs.do(lambda: order.append(3))
        event.set()
        done = await asyncio.gather(*first)
        assert await jobs.do(lambda: 9) == 9
        jobs.end()
        return done

    assert asyncio.run(all_of_them())[0] == 7 and order == [1, 2]


def test_a_job_that_takes_too_long_is_not_waited_for_and_one_that_nobody_wants_is_not_begun(
    blocked: Any,
) -> None:
    wait, event = blocked
    begun: list[int] = []

    async def all_of_them() -> None:
        jobs = Jobs(seconds=0.1)
        with pytest.raises(Busy, match=r"longer than 0\.1 seconds"):
            await jobs.do(wait)
        with pytest.raises(Busy, match="asked before"):  # behind the first, which goes on
            await jobs.do(lambda: begun.append(1))
        event.set()
        await asyncio.sleep(0.05)
        assert begun == [], "its question is gone"
        assert await jobs.do(lambda: 3) == 3
        with pytest.raises(ZeroDivisionError):
            await jobs.do(lambda: 1 // 0)
        jobs.end()

    asyncio.run(all_of_them())


def endless() -> None:
    module = nn.Linear(2, 2)
    while True:
        with contextlib.suppress(Exception):  # as explainers have it
            module(torch.ones(1, 2))


def test_a_job_that_nobody_waits_for_ends_where_the_model_runs() -> None:
    async def all_of_them() -> None:
        jobs = Jobs(seconds=0.1)
        with pytest.raises(Busy, match=r"longer than 0\.1 seconds"):
            await jobs.do(endless)
        jobs = Jobs(seconds=20)
        asked = asyncio.create_task(jobs.do(endless))
        await asyncio.sleep(0.05)
        asked.cancel()
        assert await jobs.do(lambda: 3) == 3
        jobs.end()

    before = len(_global_forward_pre_hooks)
    asyncio.run(all_of_them())
    until = time.monotonic() + 10
    while len(_global_forward_pre_hooks) > before and time.monotonic() < until:
        time.sleep(0.01)
    assert len(_global_forward_pre_hooks) == before


def test_what_a_client_that_has_left_asked_for_is_given_up(
    session: Session, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = threading.Event()

    def slow(*_: Any) -> Any:
        begun.set()
        endless()

    quick = COMPUTED["maps"]
    monkeypatch.setitem(COMPUTED, "maps", lambda *given: quick(*given) if begun.is_set() else slow())
    with serve(session) as address, httpx2.Client(timeout=20) as browser:
        here, _, token = address.partition("/?token=")
        headers = {"origin": here, "x-camkit-token": token}
        with pytest.raises(httpx2.TimeoutException):
            browser.post(f"{here}/api/maps", json={"layer": "high"}, headers=headers, timeout=0.5)
        assert begun.is_set()
        answer = browser.post(f"{here}/api/maps", json={"layer": "high"}, headers=headers)
        assert answer.status_code == 200


def test_a_busy_model_is_said(session: Session, policy: Policy, blocked: Any) -> None:
    wait, _ = blocked
    jobs = Jobs(waiting=1, seconds=5)
    page = client(create_app(session, policy, jobs), policy)

    def occupy() -> None:
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(asyncio.wait_for(_cancelled(jobs, wait), 3))

    thread = threading.Thread(target=occupy)
    thread.start()
    time.sleep(0.1)
    answer = page.post("/api/maps", json={})
    assert answer.status_code == 503 and "busy" in answer.json()["error"]
    assert page.get("/api/session").status_code == 200, "what needs no model is answered"
    thread.join()


async def _cancelled(jobs: Jobs, wait: Callable[[], int]) -> None:
    task = asyncio.create_task(jobs.do(wait))
    await asyncio.sleep(0.4)
    task.cancel()
    await task


# --- lines that make the same ---------------------------------------------------------------------


def photographs_in(folder: Path, png: Callable[..., bytes]) -> list[Given]:
    found = []
    for name, colour in (("one.png", "red"), ("two 'three'.png", "teal")):
        (folder / name).write_bytes(png((80, 64), colour))
        found.append(Given(name, folder / name))
    return found


@pytest.mark.parametrize("target", [1, 4])
def test_the_lines_make_the_map_that_is_shown(
    read: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    png: Callable[..., bytes],
    target: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    bundle = tmp_path / "a model"
    pets = camkit.load_model("pets", device="cpu")
    camkit.save_bundle(pets, bundle)
    policy = Policy(80)
    photographs = Photographs(photographs_in(tmp_path, png), read)
    models = Models([str(bundle)], lambda spec: camkit.load_model(spec, device="cpu"))
    page = client(create_app(Session(models, photographs), policy), policy)
    asked = {"photograph": 1, "target": target, "classes": [target], "method": "layercam"}
    look = {"rectified": True, "opacity": 0.5, "colours": "viridis", "scale": 0.25}
    header, maps = unpacked(page.post("/api/maps", json=asked).content)
    made = page.post("/api/lines", json={**asked, **look}).json()

    space: dict[str, Any] = {}
    exec(made["python"], space)
    np.testing.assert_allclose(space["result"].map, maps[0], atol=np.abs(maps).max() * 2**-10)
    assert (tmp_path / "explained.png").is_file()

    words = shlex.split(made["command"])
    assert words[0] == "camkit"
    done = CliRunner().invoke(cli, [*words[1:], "--out", "made", "--device", "cpu", "--workers", "0"])
    assert done.exit_code == 0, done.stderr
    (line,) = [json.loads(text) for text in (tmp_path / "made" / "manifest.jsonl").read_text().splitlines()]
    asked = {"relu": True, "alpha": 0.5, "cmap": "viridis", "scale": 0.25, "view": "original"}
    assert asked.items() <= line["picture"].items()
    assert (line["class_index"], line["layer"], line["method"]) == (target, header["layer"], "layercam")
    np.testing.assert_allclose(
        np.load(tmp_path / "made" / line["map_file"]), maps[0], atol=np.abs(maps).max() * 2**-10
    )


def test_lines_name_what_the_command_line_understands(page: TestClient, png: Callable[..., bytes]) -> None:
    def command(**asked: Any) -> str:
        return str(page.post("/api/lines", json=asked).json()["command"])

    assert command(target=0) == "camkit explain --class Abyssinian --layer high"
    assert "--class 'tiger cat'" in command(target=1)
    assert "'<img src=x onerror=alert(1)>'" in command(target=4)
    assert "--model other.pth" in command(model=1)
    assert command(colours="magma", opacity=1).endswith(" --alpha 1.0 --cmap magma")
    assert command(scale=0.25).endswith(" --scale 0.25")
    assert command(cells=True).endswith(" --cells")
    assert "--counterfactual" in command(against=True) and "--relu" in command(rectified=True)
    number = page.post("/api/photographs", content=png(), headers={"x-name": "-rf%20x.png"}).json()[
        "number"
    ]
    assert "explain './-rf x.png' --class" in command(photograph=number)


# --- the command ----------------------------------------------------------------------------------


def test_what_is_explored_is_photographs_or_a_run(
    tmp_path: Path, png: Callable[..., bytes], read: Callable[..., Any]
) -> None:
    assert sources(()) == ([Given("chelsea.png", sample_image())], ())
    folder = tmp_path / "photos"
    folder.mkdir()
    photographs_in(folder, png)
    found, model = sources([str(folder)])
    assert [one.name for one in found] == ["one.png", "two 'three'.png"] and model == ()
    out = tmp_path / "run"
    words = [
        "explain",
        str(folder),
        "--out",
        str(out),
        "--workers",
        "0",
        "--device",
        "cpu",
        "--format",
        "npz",
    ]
    assert CliRunner().invoke(cli, words).exit_code == 0
    again, model = sources([str(out)])
    assert [one.path for one in again] == [one.path for one in found] and model == ("pets",)
    photographs = Photographs(again, read)
    assert photographs.read(photographs[1], Preprocess()).image.size == (80, 64)
    again[0].path.write_bytes(png((30, 30)))
    with pytest.raises(ImageError, match=r"one\.png is not the file that was explained"):
        photographs.thumbnail(photographs[0])
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(UsageError, match="none of its photographs is where it was"):
        sources([str(out)])


def test_help_is_quick_and_says_what_is_needed() -> None:
    code = (
        "import sys; from camkit.cli import main\n"
        "try: main(['explore', '--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'starlette', 'uvicorn', 'jinja2', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Ctrl-C ends it" in done.stdout and "--i-know" in done.stdout
    assert explore.name == "explore"


def test_the_page_has_the_colours_of_the_pictures() -> None:
    found = tables()
    assert list(found) == ["signed", "for", "against", *NAMED]
    for name, table in colours.TABLES.items():
        assert found[name] == table.tolist()
    assert found["magma"][255] == [252, 253, 191] and all(len(table) == 256 for table in found.values())
