"""What an engine is: where the photographs of a large run are explained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from camkit.contracts.options import API_VERSION, NoOptions


@dataclass(frozen=True)
class Photograph:
    """A photograph where it lies: a path or an address, and the name of its results."""

    path: str
    name: str


@dataclass(frozen=True)
class Part:
    """Photographs whose rows are one file.

    number: its place in the listing, from 0. id: the same for the same photographs and request, so whoever
    does a part again writes the same file. marks: 64 bits of the name and file of each photograph; keys:
    of the name alone.
    """

    number: int
    id: str
    photographs: tuple[Photograph, ...]
    marks: tuple[int, ...] = ()
    keys: tuple[int, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What came of a part, once its file is written.

    rows: of maps. failed: photographs, or maps of one, that could not be explained, with the reason.
    warnings: each once.
    """

    part: Part
    rows: int
    failed: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()


class Worker(Protocol):
    """Does parts in the process in which it was started; others read for it until it is closed."""

    def __call__(self, part: Part, contents: Mapping[int, bytes] | None = None) -> Outcome:
        """Explain the photographs of a part and write its table, in one piece.

        contents: the bytes of those photographs, by their place in the part, that have been read already.
        Raises `CamkitError` for what ends a run, such as a disk that is full; what fails alone is in the
        outcome.
        """

    def close(self) -> None:
        """End what was started."""


class Work(Protocol):
    """What is done with a part: a request, and where its tables go. It pickles."""

    def start(self, threads: int | None = None) -> Worker:
        """Load the model in this process. threads: that torch computes with on a CPU."""


class Engine(ABC):
    """Does the parts of a run wherever it likes. Registered under `camkit.engines`."""

    api_version: ClassVar[int] = API_VERSION
    summary: ClassVar[str]
    Options: ClassVar[type[Any]] = NoOptions

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def run(self, work: Work, parts: Iterable[Part]) -> Iterator[Outcome]:
        """The outcome of each part, as it is done, in any order.

        work: pickles; `work.start()` in a process gives a function that does a part, and writes its file.
        A part may be done again, after a process was lost: its file is the same then. Each part has one
        outcome, and a part is done when its outcome is handed out.
        parts: lazy, and it pickles; each time it is iterated over it gives the same. What it raises, and
        what `work` raises, is raised by `run`. When the iterator is closed, or its consumer raises, nothing
        that was started may go on.
        """
