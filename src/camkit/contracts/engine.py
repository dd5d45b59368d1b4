"""What an engine is: where the photographs of a large run are explained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from camkit.contracts.options import API_VERSION, NoOptions

if TYPE_CHECKING:
    from camkit.engines.work import Work


@dataclass(frozen=True)
class Photograph:
    """A photograph where it lies: a path or an address, and the name of its results."""

    path: str
    name: str


@dataclass(frozen=True)
class Part:
    """Photographs whose rows are one file.

    number: its place in the listing, from 0. id: the same for the same photographs and request, so whoever
    does a part again writes the same file. marks: 64 bits of the name and file of each photograph.
    """

    number: int
    id: str
    photographs: tuple[Photograph, ...]
    marks: tuple[int, ...] = ()


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
