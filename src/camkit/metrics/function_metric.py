"""Metrics that are one function each: a class says what it is, the function beside it what it computes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar, Literal

from camkit.contracts.metric import MapBatch, Metric, Scores


class FunctionMetric(Metric):
    """Scores maps by `function`, which is given what its parameters name: parts of the batch, and options.

    The parameter `f` is the module. `measure` sees to it that what a metric `needs` is there.
    """

    direction: ClassVar[Literal["higher", "lower"]] = "higher"
    range = (0.0, 1.0)
    function: ClassVar[Callable[..., Any]]

    def score(self, batch: MapBatch) -> Scores:
        """What the function says of each image."""
        return Scores(self.result(batch))

    def result(self, batch: MapBatch) -> Any:
        """Whatever the function returns."""
        available = {"f": batch.module, **vars(batch), **vars(self.options)}
        names = available.keys() & inspect.signature(self.function).parameters.keys()
        return self.function(**{name: available[name] for name in names})
