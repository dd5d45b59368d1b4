"""Photographs read in other processes: in order, each on its own, with limits that hold."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camkit.errors import CamkitWarning
from camkit.images import decoding
from camkit.images.decoding import Photo
from camkit.images.finding import Source
from camkit.images.preprocess import Preprocess
from camkit.images.workers import Failure, LimitError, Processes, name_of, prepare, processes, read

VIEW = Preprocess(size=(16, 24))


def photo(path: Path, size: tuple[int, int] = (60, 40), seed: int = 0) -> Path:
    """A picture of noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def slow(path: Path, scans: int = 2000) -> Path:
    """A small JPEG that takes long: its last scan comes again and again."""
    buffer = io.BytesIO()
    Image.new("L", (4000, 4000), 128).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    start = data.rindex(b"\xff\xda")
    path.write_bytes(data[:start] + data[start:-2] * scans + b"\xff\xd9")
    return path


def large(path: Path) -> Path:
    """A small file with 16-bit grey, which takes 400 MB while it is converted."""
    Image.fromarray(np.zeros((4000, 4000), np.uint16)).save(path, compress_level=1)
    return path


@contextmanager
def pool(count: int = 1, **limits: float) -> Iterator[Processes]:
    """Reading processes that end with the block."""
    made = Processes(count, **limits)  # type: ignore[arg-type]
    try:
        yield made
    finally:
        made.stop()


def seen(found: Iterator[tuple[int, Photo] | Failure]) -> list[tuple[int, str]]:
    """Positions, with a digest of what was read or the reason why not."""
    return [
        (item.position, str(item.error)) if isinstance(item, Failure) else (item[0], item[1].sha256)
        for item in found
    ]


# --- what is read ---------------------------------------------------------------------------------


def test_photographs_come_in_order_with_bad_files_in_their_places(tmp_path: Path) -> None:
    """Every third is large, so that others overtake it while it is read; all is as `read` has it."""
    sources: list[Path] = []
    for i in range(24):
        sources.append(photo(tmp_path / f"{i}.png", (900, 600) if i % 3 == 0 else (30, 20), seed=i))
    sources[5].write_bytes(b"")
    sources[11].write_bytes(b"no picture")
    sources[12].unlink()
    sources[23].write_bytes(sources[21].read_bytes()[:5000])
    expected = seen(read(sources, VIEW))
    assert [position for position, _ in expected] == list(range(24))
    assert [expected[i][1].removeprefix(str(tmp_path)) for i in (5, 11, 12)] == [
        "/5.png is empty (0 bytes)",
        "/11.png is not an image that camkit reads (JPEG, PNG, WEBP, GIF, BMP, TIFF, PPM)",
        "/12.png cannot be read: No such file or directory",
    ]
    assert "23.png cannot be decoded" in expected[23][1]
    with pool(2) as both:
        for ahead in (1, 100):
            assert seen(both.read(sources, VIEW, ahead=ahead)) == expected


@pytest.mark.parametrize("workers", [0, 1])
def test_whole_photographs_or_what_the_model_sees_of_them(tmp_path: Path, workers: int) -> None:
    source = Source(photo(tmp_path / "cat.png"), "a/cat.png")
    full = decoding.load(source.path)
    with processes(workers) as made:
        assert (made is None) == (workers == 0)
        reader = made.read if made else read
        ((_, whole),) = reader([source], VIEW)
        ((_, cut),) = reader([source], VIEW, whole=False)
    assert isinstance(whole, Photo) and isinstance(cut, Photo)
    assert (whole.cut, cut.cut) == (False, True)
    assert np.array_equal(np.asarray(whole.image), np.asarray(full.image))
    assert np.array_equal(np.asarray(cut.image), np.asarray(VIEW.view(full.image)))
    for found in (whole, cut):
        assert (found.name, found.source, found.sha256) == ("a/cat.png", str(source.path), full.sha256)


def test_warnings_come_along(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (20, 20), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    with pool() as one:
        ((_, found),) = one.read([tmp_path / "moving.gif"], VIEW)
    assert found.warnings == (f"{tmp_path}/moving.gif has several frames: the first is explained",)


def test_images_in_memory_are_read_too() -> None:
    picture = Image.fromarray(np.arange(60, dtype=np.uint8).reshape(4, 5, 3))
    with pool() as one:
        ((_, found),) = one.read([picture], VIEW)
    assert np.array_equal(np.asarray(found.image), np.asarray(picture))
    assert found == prepare(picture, VIEW) and found.name == "image"


def test_results_are_called_as_their_sources() -> None:
    assert name_of(Source(Path("x/y.png"), "a/b.png")) == "a/b.png"
    assert name_of("x/y.png") == name_of(Path("x/y.png")) == "y.png"
    assert name_of(Image.new("RGB", (1, 1))) == "image"


def test_not_more_is_read_ahead_than_asked(tmp_path: Path) -> None:
    path, taken = photo(tmp_path / "cat.png"), 0

    def sources() -> Iterator[Path]:
        nonlocal taken
        for _ in range(50):
            taken += 1
            yield path

    with pool() as one:
        found = one.read(sources(), VIEW, ahead=3)
        for given in range(1, 10):
            next(found)
            assert taken == given + 3


# --- limits ---------------------------------------------------------------------------------------


def test_a_file_that_takes_too_long_costs_only_itself(tmp_path: Path) -> None:
    good = photo(tmp_path / "good.png")
    sources = [good, slow(tmp_path / "slow.jpg"), *[good] * 5]
    with pool(seconds=2) as one:  # it would take 20 and more
        found = seen(one.read(sources, VIEW))
    assert found[1] == (1, f"{tmp_path}/slow.jpg took longer than 2 seconds to be read")
    assert [found[i] for i in (0, 2, 6)] == [(i, found[0][1]) for i in (0, 2, 6)] and len(found) == 7


def test_a_file_that_takes_too_much_memory_costs_only_itself(tmp_path: Path) -> None:
    good = photo(tmp_path / "good.png")
    sources = [good, large(tmp_path / "large.png"), *[good] * 5]
    assert isinstance(next(read(sources[1:], VIEW, whole=False)), tuple)  # without a limit it is read
    with pool(memory=250 * 2**20) as one:
        found = seen(one.read(sources, VIEW, whole=False))
    assert found[1] == (1, f"{tmp_path}/large.png needs more memory than it may have to be decoded")
    assert [found[i] for i in (0, 2, 6)] == [(i, found[0][1]) for i in (0, 2, 6)] and len(found) == 7


@pytest.mark.parametrize("limit", [100, 150, 200, 250, 300, 350])
def test_wherever_memory_ends_there_is_an_answer(tmp_path: Path, limit: int) -> None:
    """While a photograph is decoded, turned, cut, or sent to the process that asked."""
    good = photo(tmp_path / "good.png")
    Image.new("RGBA", (5000, 4000)).save(tmp_path / "large.png", compress_level=1)
    with pool(memory=limit * 2**20) as one:
        found = seen(one.read([good, tmp_path / "large.png", good], VIEW))
    assert found[0][1] == found[2][1] == decoding.digest(good)
    assert "large.png needs more memory" in found[1][1] or "large.png took down" in found[1][1]


def test_memory_may_end_while_a_photograph_is_resized(tmp_path: Path) -> None:
    good = photo(tmp_path / "good.png")
    with pool(memory=150 * 2**20) as one:
        found = seen(one.read([good], Preprocess(size=(4096, 4096), resize=8192), whole=False))
        assert found == [(0, f"{good} needs more memory than it may have")]
        assert seen(one.read([good], VIEW, whole=False)) == [(0, decoding.digest(good))]


class Deadly(os.PathLike[str]):
    """A file that kills the process that reads it, as a fault in a library would."""

    def __init__(self, path: Path, number: int) -> None:
        self.path, self.number = path, number

    def __fspath__(self) -> str:
        """The path, where it is not read."""
        if multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), self.number)
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_a_file_that_takes_the_process_down_costs_only_itself(tmp_path: Path, number: int) -> None:
    good = photo(tmp_path / "good.png")
    bad = Deadly(tmp_path / "bad.png", number)
    with pool() as one:
        found = seen(one.read([good, bad, good, bad, bad, good], VIEW))
    reason = f"{tmp_path}/bad.png took down the process that read it"
    assert [i for i, text in found if text == reason] == [1, 3, 4]
    assert [text for i, text in found if i in (0, 2, 5)] == [decoding.digest(good)] * 3


def test_anything_may_be_called_and_what_it_says_or_raises_comes_back() -> None:
    with pool() as one:
        assert one.call(divmod, 7, 2, name="a") == (3, 1)
        with pytest.raises(ValueError, match="invalid literal"):
            one.call(int, "x", name="a")


@pytest.mark.parametrize(
    ("function", "argument", "reason"),
    [
        (time.sleep, 60, "took longer than 3 seconds"),
        (os._exit, 3, "took down"),
        (bytes, 2**25, "needs more memory"),
    ],
)
def test_a_call_that_goes_beyond_a_limit_is_an_error_and_the_next_one_is_answered(
    function: Callable[[int], object], argument: int, reason: str
) -> None:
    with pool(seconds=3) as one:
        with pytest.raises(LimitError, match=f"^table {reason}"):
            one.call(function, argument, name="table", memory=2**22)
        assert len(one.call(bytes, 2**25, name="table")) == 2**25  # the limit was of that call


def test_what_may_wait_is_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("camkit.images.workers.WAITING", 4 * 3 * (16 * 24 + 30**2))
    path, taken = photo(tmp_path / "cat.png"), 0

    def sources() -> Iterator[Path]:
        nonlocal taken
        for _ in range(50):
            taken += 1
            yield path

    with pool() as one:
        next(one.read(sources(), VIEW, side=30, ahead=30))
        assert taken == 5
        next(one.read(sources(), VIEW, whole=False, ahead=10))
        assert taken == 5 + 11


@pytest.mark.parametrize("workers", [0, 1])
def test_a_large_photograph_is_reduced_for_drawing_and_the_model_sees_all_of_it(
    tmp_path: Path, workers: int
) -> None:
    path = photo(tmp_path / "cat.png", (90, 60))
    with processes(workers) as made:
        ((_, found),) = (made.read if made else read)([path], VIEW, side=36)
        ((_, small),) = (made.read if made else read)([path], VIEW, side=90)
    assert isinstance(found, Photo) and isinstance(small, Photo)
    assert (found.image.size, found.whole, found.cut) == ((36, 24), (90, 60), False)
    assert found.view is not None
    assert np.array_equal(np.asarray(found.view), np.asarray(VIEW.view(decoding.load(path).image)))
    assert found.warnings == ()
    assert (small.image.size, small.view, small.whole, small.warnings) == ((90, 60), None, None, ())


# --- the processes end ----------------------------------------------------------------------------


def descendants(process: int) -> set[int]:
    """Processes below a process, from /proc."""
    above: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            above[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended meanwhile
            continue
    found, fresh = set[int](), {process}
    while fresh := {child for child, parent in above.items() if parent in fresh} - found:
        found |= fresh
    return found


def is_there(process: int) -> bool:
    """Whether a process runs; one that has ended may stay until it is waited for."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


READER = """
import sys
from camkit.images.preprocess import Preprocess
from camkit.images.workers import Processes
if __name__ == "__main__":
    good, slow = sys.argv[1:]
    pool = Processes(2)
    assert len(list(pool.read([good] * 20, Preprocess(size=(8, 8))))) == 20
    found = pool.read([good, slow, good], Preprocess(size=(8, 8)), ahead=1)
    next(found)
    print(flush=True)
    next(found)
"""


LARGE_PROGRAM = """
import mmap, sys
from camkit.images import workers
from camkit.images.preprocess import Preprocess

# What importing torch takes where it is built for CUDA: addresses alone.
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
ADDRESSES = mmap.mmap(-1, workers.MEMORY + 2**30, PRIVATE, mmap.PROT_READ)

if __name__ == "__main__":
    with workers.processes(1) as pool:
        (found,) = pool.read([sys.argv[1]], Preprocess(size=(16, 24)))
        print(found[0], pool.call(len, b"four", name="a"))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the limit is that of Linux")
def test_a_program_may_take_more_addresses_than_its_readers_may(tmp_path: Path) -> None:
    """A reader imports the program that started it, and with it all that this imports."""
    script = tmp_path / "program.py"
    script.write_text(LARGE_PROGRAM)
    done = subprocess.run(
        [sys.executable, str(script), str(photo(tmp_path / "good.png"))],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "0 4\n", done.stderr


def test_who_waits_for_readers_that_have_all_ended_is_told() -> None:
    """As after a fault where a process starts, of which older releases of pebble tell nobody."""
    with pool() as one:
        assert one.call(len, b"four", name="a") == 4
        one.stop()
        never: Future[int] = Future()
        with pytest.raises(LimitError, match="a was not read: the process that reads has ended"):
            one._answer(never, "a")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc to look into")
def test_readers_end_when_their_parent_is_killed_even_in_the_middle_of_a_file(tmp_path: Path) -> None:
    script = tmp_path / "reader.py"
    script.write_text(READER)
    arguments = [str(photo(tmp_path / "good.png")), str(slow(tmp_path / "slow.jpg", 20_000))]
    child = subprocess.Popen([sys.executable, str(script), *arguments], stdout=subprocess.PIPE)
    assert child.stdout and child.stdout.readline() == b"\n"
    below = descendants(child.pid)
    assert len(below) >= 3  # a server and two readers
    child.kill()
    child.wait()
    until = time.monotonic() + 20
    while any(map(is_there, below)) and time.monotonic() < until:
        time.sleep(0.05)
    left = [process for process in below if is_there(process)]
    for process in left:
        os.kill(process, signal.SIGKILL)
    assert left == []


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc to look into")
def test_readers_end_with_the_block_even_in_the_middle_of_a_file(tmp_path: Path) -> None:
    good = photo(tmp_path / "good.png")
    sources = [good, slow(tmp_path / "slow.jpg", 20_000), good]
    with processes(1) as made:  # the server that makes them stays
        assert made and len(list(made.read([good], VIEW))) == 1
    before = descendants(os.getpid())
    with processes(2) as made:
        assert made is not None
        next(made.read(sources, VIEW, ahead=1))
        readers = descendants(os.getpid()) - before
    assert len(readers) == 2
    assert [process for process in readers if is_there(process)] == []


def test_where_no_process_can_be_started_this_one_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where /dev/shm cannot be written."""

    def refused(*_: object) -> object:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("_multiprocessing.SemLock", refused)
    said = r"\(Read-only file system\).* --workers 0 "
    with pytest.warns(CamkitWarning, match=said), processes(2) as pool:
        assert pool is None
    with processes(0) as pool:  # without a word
        assert pool is None
