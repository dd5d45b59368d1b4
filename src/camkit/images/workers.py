"""Files of strangers, read in processes that a hostile one may take down: photographs ahead of the model.

A process that reads has little memory, and little time for each file; when it dies, or is killed for
taking too long, that file is a `Failure` (or a `LimitError`), and another process takes over. It imports
neither torch nor any model, so it is quick to start and small.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from camkit.errors import CamkitError, ImageError, reason, warn
from camkit.images import decoding, finding
from camkit.images.decoding import Fetched, Photo
from camkit.images.finding import Source
from camkit.images.inputs import Row

if TYPE_CHECKING:
    from pebble import ProcessPool

    from camkit.images.preprocess import Preprocess

# A path, an address, a Pillow image, bytes, an open file, an array or a tensor; or one with its name.
ImageSource = Any

T = TypeVar("T")

SECONDS = 30.0  # for one file
WAITING = 2**27  # bytes of pixels that may wait for the model
MEMORY = 4 * 2**30  # of one process; the largest photograph with transparency needs less than 2 GiB


@dataclass(frozen=True)
class Failure:
    """A photograph, or one map of it, that could not be explained; the others are unaffected."""

    source: str
    error: CamkitError
    position: int
    sha256: str | None = None
    name: str = "image"
    path: str | None = None


class LimitError(CamkitError):
    """A file took more time or memory than a process that reads has, or took the process down."""


def prepare(
    source: ImageSource, preprocess: Preprocess, *, whole: bool = True, side: int | None = None
) -> Photo:
    """A photograph, `whole` or cut to what the model sees of it. Raises `ImageError`.

    side: pixels that the longest side of a whole photograph is reduced to, for drawing; what the model sees
    is cut from all of it.
    """
    photo = _loaded(source, preprocess.photo_channels)
    if not whole:
        return replace(photo, image=preprocess.view(photo.image), cut=True, whole=photo.image.size)
    size = photo.image.size
    if side is None or max(size) <= side:
        return photo
    view = preprocess.view(photo.image)
    return replace(photo, image=decoding.reduced(photo.image, side), view=view, whole=size)


def _loaded(source: ImageSource, count: int) -> Photo:
    name = source.name if isinstance(source, Row) else ""
    try:
        photo = replace(decoding.load(_content(source), count), name=name_of(source))
    except ImageError as error:
        if name:
            raise ImageError(f"{name}: {error}") from None
        raise
    return replace(photo, source=name) if name else photo


def _content(source: ImageSource) -> Any:
    """What is to be read."""
    if isinstance(source, Row):
        return source.image
    return source.path if isinstance(source, Source) else source


def name_of(source: ImageSource) -> str:
    """The name of a source's results."""
    if isinstance(source, Source | Photo | Fetched):
        return source.name
    if isinstance(source, Row):
        return os.path.basename(source.name) or name_of(source.image)  # noqa: PTH119
    return os.path.basename(source) if isinstance(source, str | os.PathLike) else "image"  # noqa: PTH119


def read(
    sources: Iterable[ImageSource],
    preprocess: Preprocess,
    *,
    whole: bool = True,
    side: int | None = None,
) -> Iterator[tuple[int, Photo] | Failure]:
    """Each photograph with its position, when it is asked for, in this process."""
    for position, source in enumerate(sources):
        try:
            yield position, prepare(source, preprocess, whole=whole, side=side)
        except ImageError as error:
            yield _failure(position, source, error)
        except MemoryError:
            text = f"{_shown(source)} needs more memory than there is"
            yield _failure(position, source, ImageError(text))


def call(function: Callable[..., T], *arguments: Any, name: str, memory: int = MEMORY) -> T:
    """As `Processes.call`, but in this process and without limits."""
    return function(*arguments)


class Processes:
    """Processes that read; they start at once, beside whatever else has to be imported.

    seconds, memory: how long a file may take, and bytes that a process may have beyond those that the
    interpreter and the main program's imports take.
    """

    def __init__(self, count: int = 2, *, seconds: float = SECONDS, memory: int = MEMORY) -> None:
        from pebble import ProcessPool

        method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        context: Any = multiprocessing.get_context(method)
        if method == "forkserver":
            context.set_forkserver_preload([__name__])
            _start_server()
        self._count, self._seconds = count, seconds
        self._pool: ProcessPool = ProcessPool(
            max_workers=count, context=context, initializer=_limit_process, initargs=(memory,)
        )
        for _ in range(count):
            self._pool.schedule(int)

    def read(
        self,
        sources: Iterable[ImageSource],
        preprocess: Preprocess,
        *,
        whole: bool = True,
        side: int | None = None,
        ahead: int = 32,
    ) -> Iterator[tuple[int, Photo] | Failure]:
        """As the function `read`, but up to `ahead` photographs ahead, in the same order.

        Fewer are read ahead if they may be large, unless they are `whole` and are not reduced to a `side`.
        """
        work = partial(prepare, preprocess=preprocess, whole=whole, side=side)
        most = 3 * (prod(preprocess.seen) + (side or 0) ** 2 * whole)
        if side is not None or not whole:
            ahead = max(self._count, min(ahead, WAITING // most))
        waiting: deque[tuple[int, ImageSource, Any]] = deque()
        for position, source in enumerate(sources):
            future = self._pool.schedule(work, args=(source,), timeout=self._seconds)
            waiting.append((position, source, future))
            if len(waiting) > ahead:
                yield self._result(*waiting.popleft())
        while waiting:
            yield self._result(*waiting.popleft())

    def call(self, function: Callable[..., T], *arguments: Any, name: str, memory: int = MEMORY) -> T:
        """Run a function, from a module that needs no torch, in such a process: its result, or its error.

        name: of the file that it reads. memory: bytes that it may take beyond what the process has.
        Raises `LimitError` if it takes more, or too long, or takes the process down.
        """
        future = self._pool.schedule(_limited, args=(memory, function, *arguments), timeout=self._seconds)
        result: T = self._answer(future, name)
        return result

    def stop(self) -> None:
        """End the processes, whatever they are doing."""
        # Ctrl-C in the middle of `schedule` may leave the pool's queue so that the next wake-up of its
        # thread is lost. That must not be the one that ends it.
        with suppress(RuntimeError):  # of a pool that has ended already
            self._pool.schedule(int)
        self._pool.stop()  # type: ignore[no-untyped-call]
        self._pool.join()

    def _result(self, position: int, source: ImageSource, future: Any) -> tuple[int, Photo] | Failure:
        try:
            return position, self._answer(future, _shown(source))
        except (ImageError, LimitError) as error:
            return _failure(position, source, ImageError(str(error)))

    def _answer(self, future: Any, name: str) -> Any:
        from pebble import ProcessExpired

        try:
            while not wait([future], timeout=1).done:
                if not self._pool.active:  # then some releases of pebble leave what was asked unanswered
                    raise LimitError(f"{name} was not read: the process that reads has ended")
            return future.result()
        except MemoryError:
            reason = "needs more memory than it may have"
        except TimeoutError:
            reason = f"took longer than {self._seconds:g} seconds to be read"
        except ProcessExpired:
            reason = "took down the process that read it"
        raise LimitError(f"{name} {reason}")


@contextmanager
def processes(count: int) -> Iterator[Processes | None]:
    """`Processes` that end with the block; none for a count of 0.

    None, and a `CamkitWarning`, where the system lets no process be started that shares anything with this
    one, as with a `/dev/shm` that cannot be written.
    """
    pool = None
    try:
        pool = Processes(count) if count else None
    except (OSError, ImportError) as error:
        text = f"no processes can be started to read photographs ({reason(error)})"
        text += ": this one reads them, without limits on time and memory, as --workers 0 does"
        warn(text)
    try:
        yield pool
    finally:
        if pool:
            pool.stop()


@contextmanager
def photo_reader() -> Iterator[Callable[..., Photo]]:
    """A function that reads one photograph of a stranger, in a process of little memory and time.

    It takes a path or bytes, a `Preprocess` and `side`, to which the longest side of a larger photograph is
    reduced; what the model sees is then in `Photo.view`. Without `side` it stays as large as it is. It
    raises `ImageError`; several threads may call it. As with `processes`, there is a warning where the
    system lets no process be started.
    """
    with processes(1) as pool:
        read_ahead = pool.read if pool else read

        def one(source: ImageSource, preprocess: Preprocess, *, side: int | None = None) -> Photo:
            (found,) = read_ahead([source], preprocess, side=side)
            if isinstance(found, Failure):
                raise found.error
            return found[1]

        yield one


def _failure(position: int, source: ImageSource, error: ImageError) -> Failure:
    path = source.path if isinstance(source, Fetched) else _content(source)
    real = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    return Failure(_shown(source), error, position, name=name_of(source), path=real)


def _shown(source: ImageSource) -> str:
    """A source for people."""
    if isinstance(source, Row) and source.name:
        return finding.display(source.name)
    path = source.path if isinstance(source, Fetched) else _content(source)
    return finding.display(str(path)) if isinstance(path, str | os.PathLike) else "image"


def _start_server() -> None:
    """Start the process that others are forked from.

    It ignores Ctrl-C, which a terminal sends to all of its processes, and ends without a message.
    """
    from multiprocessing import forkserver

    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if in_main else None
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        forkserver.ensure_running()
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)
        if in_main:
            signal.signal(signal.SIGINT, handler)


def _limit_process(memory: int) -> None:
    """In a new process: no more than `memory` further bytes, and an end when the parent ends.

    Further ones, for it has imported the main program: with torch built for CUDA that alone may be 5 GB of
    addresses, and without any left not even a thread starts.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders print there what the error says anyway
    with suppress(ImportError, ValueError, OSError):  # not everywhere, and not above a stricter limit
        import resource

        limit = _addressed() + memory
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _limited(memory: int, function: Callable[..., T], *arguments: Any) -> T:
    """Call a function that gets at most `memory` bytes beyond what this process has already."""
    try:
        import resource

        limit = _addressed() + memory
    except (ImportError, OSError):  # where the limit of the process has to do
        return function(*arguments)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limits = [limit, *(n for n in (soft, hard) if n >= 0)]
    resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))
    try:
        return function(*arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _addressed() -> int:
    """Bytes of addresses that this process has; `OSError` where the system does not tell."""
    import resource

    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
