"""The engine `ray`: parts of the photographs on a cluster, by Ray Data, which is imported when it runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from camkit.errors import UsageError
from camkit.plugin import Engine, Outcome, Part, Work, option


@dataclass(frozen=True)
class RayOptions:
    """Of the command line: `--actors`, `--gpus-per-actor`, `--address`."""

    actors: int = option(
        0, help="models side by side; 0: one for each GPU, or for two cores", min=0, max=65_536
    )
    gpus_per_actor: float = option(
        -1.0, help="GPUs of each, or a part of one; -1: one, if there are any", min=-1, max=64
    )
    address: str = option("", help="a cluster that is there already; else one is started on this machine")


class RayEngine(Engine):
    """Parts are read, explained and written by tasks and actors of Ray Data."""

    summary = "Ray Data: on a cluster, or on all cores and GPUs of this machine"
    Options = RayOptions

    def run(self, work: Work, parts: Iterable[Part]) -> Iterator[Outcome]:
        """Each part as it is done; a cluster that was started for it ends with it."""
        try:
            from camkit_ray.running import outcomes
        except ImportError as error:
            raise UsageError(f"--engine ray needs Ray Data (pip install 'ray[data]'): {error}") from None
        return outcomes(work, parts, self.options)
