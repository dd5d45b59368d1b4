"""The engine `ray`, on small clusters of this machine. `make cluster` also runs those that lose nodes."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas
import polars
import pytest
from click.testing import CliRunner, Result
from PIL import Image

ray = pytest.importorskip("ray", reason="Ray is not installed")
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from ray.cluster_utils import Cluster  # noqa: E402

from camkit.cli import cli  # noqa: E402
from camkit.engines import tables  # noqa: E402
from camkit.testing import engine_checks  # noqa: E402

MODEL = ("--model", "timm:test_resnet@none", "--device", "cpu", "--workers", 0)
MEMORY = 150 * 2**20  # of the object store of a node
lost = pytest.mark.skipif("CAMKIT_CLUSTER" not in os.environ, reason="loses nodes: make cluster")


def camkit_(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(one) for one in arguments])


def apart(*arguments: object) -> subprocess.CompletedProcess[str]:
    """In a process of its own, as what reads photographs keeps the environment that it was started with."""
    call = [sys.executable, "-m", "camkit", *map(str, arguments)]
    return subprocess.run(call, capture_output=True, text=True)


def photographs(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:04}.png")
    return folder


def table(place: str | Path) -> polars.DataFrame:
    return polars.read_parquet(f"{place}/part-*.parquet").sort("name")


def equal(one: polars.DataFrame, other: polars.DataFrame, *, but: tuple[str, ...] = ()) -> None:
    assert one.columns == other.columns and len(one) == len(other)
    for column in set(one.columns) - set(but):
        assert one[column].equals(other[column], null_equal=True), column


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def answers(port: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)


KEYS = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "aws_region": "us-east-1"}


def of_store(url: str) -> dict[str, str]:
    """The environment of those who use it."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


# What rclone does not know yet.
CHECKSUMS = {
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
}


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """An object store on loopback, which processes that start later know, too."""
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    server = pytest.importorskip("moto.server", reason="moto is not installed")
    with pytest.MonkeyPatch.context() as patch:
        port = free_port()
        store = server.ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
        store.start()
        url = f"http://127.0.0.1:{port}"
        for name, value in of_store(url).items():
            patch.setenv(name, value)
        yield url
        store.stop()


@pytest.fixture(scope="module")
def here(s3: str) -> Iterator[None]:
    """A cluster of one node, which knows the object store."""
    ray.init(
        num_cpus=4,
        object_store_memory=MEMORY,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()


@engine_checks("ray", dist="camkit-ray", options={"actors": 1})
def test_conformance(check: Any, here: None) -> None:
    check()


def test_from_and_to_an_object_store(
    here: None, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the engine `local` there, however many names a page of a listing holds."""
    import s3fs

    monkeypatch.setattr("camkit.images.addresses.PAGE", 3)
    photos = photographs(tmp_path / "photos", 6)
    (photos / "bad.png").write_bytes(b"no picture")
    store = s3fs.S3FileSystem(skip_instance_cache=True)
    for bucket in ("photos", "maps"):
        store.mkdir(bucket)
    for path in photos.iterdir():
        store.pipe_file(f"photos/2026/{path.name}", path.read_bytes())
    for number in range(20):
        store.pipe_file(f"photos/2026/b/{number:04}.txt", b"x")
    store.pipe_file("photos/2026/c/last.png", (photos / "0000.png").read_bytes())

    asked = ("explain", "s3://photos/2026", *MODEL, "--batch-size", 4, "--out")
    for engine, options in {"local": (), "ray": ("--engine", "ray", "--actors", 1)}.items():
        done = camkit_(*asked, f"s3://maps/{engine}", *options)
        assert done.exit_code == 3 and "7 maps done, 1 failed" in done.stderr, done.output
    rows = {}
    for engine in ("local", "ray"):
        for path in store.ls(f"maps/{engine}"):
            (tmp_path / engine).mkdir(exist_ok=True)
            (tmp_path / engine / path.rpartition("/")[2]).write_bytes(store.cat_file(path))
        rows[engine] = table(tmp_path / engine)
    equal(rows["local"], rows["ray"])
    assert rows["ray"]["name"].to_list()[-1] == "c/last.png" and len(rows["ray"]) == 8

    assert len(pandas.read_parquet("s3://maps/ray")) == 8  # what begins with _ is no table
    with duckdb.connect() as database:
        database.register_filesystem(store)
        asked_of = "SELECT count(*) FROM 's3://maps/ray/part-*.parquet' WHERE status = 'ok'"
        assert database.sql(asked_of).fetchall() == [(7,)]
    reached = {"aws_endpoint_url": s3, "aws_allow_http": "true", **KEYS}
    lazily = polars.scan_parquet("s3://maps/ray/part-*.parquet", storage_options=reached)
    assert lazily.select("name").collect().height == 8

    again = camkit_(*asked, "s3://maps/ray", "--engine", "ray", "--actors", 1)
    assert again.exit_code == 2 and "--resume does the rest" in again.stderr
    verified = apart("verify", "s3://maps/ray", "--sample", 2)
    assert verified.returncode == 0 and "7 results: 7 maps" in verified.stdout, verified.stderr

    drawn = camkit_("render", "s3://maps/ray", "--engine", "ray", "--actors", 1, "--out", "s3://maps/drawn")
    assert drawn.exit_code == 0 and "7 pictures" in drawn.stderr, drawn.output
    pictures = [name for name in store.find("maps/drawn") if name.endswith(".png")]
    assert len(pictures) == 7
    assert all(store.cat_file(name).startswith(b"\x89PNG") for name in pictures)


def test_another_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that checks keys, and keeps its files on the disk."""
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    program = shutil.which("rclone") or shutil.which("rclone", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("rclone is not installed")
    (tmp_path / "store" / "maps").mkdir(parents=True)
    photographs(tmp_path / "store" / "photos", 3)
    port = free_port()
    serve = [program, "serve", "s3", "--config", os.devnull, "--addr", f"127.0.0.1:{port}"]
    with subprocess.Popen([*serve, "--auth-key", "key,secret", str(tmp_path / "store")],
                          stderr=subprocess.DEVNULL) as server:  # fmt: skip
        try:
            for name, value in (of_store(f"http://127.0.0.1:{port}") | CHECKSUMS).items():
                monkeypatch.setenv(name, value)
            answers(port)
            done = apart("explain", "s3://photos", *MODEL, "--out", "s3://maps/a")
            assert done.returncode == 0 and "3 maps in 1 table" in done.stderr, done.stderr
            assert len(table(tmp_path / "store" / "maps" / "a")) == 3
            assert apart("verify", "s3://maps/a").returncode == 0
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
            refused = apart("explain", "s3://photos", *MODEL, "--out", "s3://maps/b")
            assert (
                refused.returncode == 1 and "signature" in refused.stderr and "wrong" not in refused.stderr
            )
        finally:
            server.kill()


def test_more_actors_than_there_is_room_for(here: None, s3: str, tmp_path: Path) -> None:
    photos = photographs(tmp_path / "photos", 2)
    out = tmp_path / "out"
    done = camkit_("explain", photos, *MODEL, "--engine", "ray", "--actors", 9, "--out", out)
    assert done.exit_code == 2 and "--actors 9: the cluster has room for 3 (cores, 4 in all" in done.stderr


def test_a_cluster_that_does_not_answer(tmp_path: Path) -> None:
    photos = photographs(tmp_path / "photos", 2)
    asked = ("explain", photos, *MODEL, "--engine", "ray", "--out", tmp_path / "out")
    ray.shutdown()  # else that is the cluster
    done = camkit_(*asked, "--address", "127.0.0.1:1")
    assert done.exit_code == 2 and "Error: no cluster answers at 127.0.0.1:1" in done.stderr, done.output


# --- what is lost -------------------------------------------------------------------------------------


@pytest.fixture
def three() -> Iterator[Any]:
    """Three nodes."""
    ray.shutdown()
    node = {"num_cpus": 2, "object_store_memory": MEMORY}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    cluster.workers = [cluster.add_node(**node) for _ in range(2)]  # type: ignore[attr-defined]
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def started(cluster: Any, photos: Path, out: Path, *more: str) -> subprocess.Popen[bytes]:
    """A run of its own, once its first table is there."""
    call = [sys.executable, "-m", "camkit", "explain", str(photos), *map(str, MODEL), "--engine", "ray"]
    call += ["--address", cluster.address, "--actors", "3", "--batch-size", "4", "--part-size", "8"]
    call += ["--out", str(out), *more]
    process = subprocess.Popen(call, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not tables.there(str(out)).parts and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return process


@lost
@pytest.mark.cluster
@pytest.mark.parametrize("what", ["worker", "node", "driver"])
def test_nothing_is_lost_and_nothing_done_twice(what: str, three: Any, tmp_path: Path) -> None:
    photos, out = photographs(tmp_path / "photos", 200), tmp_path / "out"
    process = started(three, photos, out)
    if what == "worker":
        names = subprocess.run(["pgrep", "-f", "ray::MapWorker"], capture_output=True, text=True)
        os.kill(int(names.stdout.split()[0]), signal.SIGKILL)
    elif what == "node":
        three.remove_node(three.workers[0], allow_graceful=False)
    else:
        process.kill()
    code = process.wait(240)
    assert code == (-signal.SIGKILL if what == "driver" else 0)
    if what == "driver":
        assert started(three, photos, out, "--resume").wait(240) == 0
    found = table(out)["name"].to_list()
    assert found == sorted(path.name for path in photos.iterdir())
