"""A file of baselines for expected gradients: photographs as a model is shown them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from camkit.contracts.model import LoadedModel
from camkit.drawing.overlay import seen
from camkit.errors import UsageError, warn
from camkit.files import write_whole
from camkit.images.finding import find
from camkit.images.workers import Failure, processes, read


def write(model: LoadedModel, photographs: Sequence[str], out: Path, count: int) -> int:
    """Write at most `count` photographs, evenly spread over those found, into `out`; how many they are.

    A float32 array `[n, C, H, W]` of inputs of the model. What cannot be read is left out, with a warning.
    Raises `UsageError` if none is found or can be read.
    """
    found = list(find(photographs))
    number = min(count, len(found))
    chosen = [found[index * len(found) // number] for index in range(number)]
    made, preprocess = [], model.preprocess
    with processes(1) as pool:
        for item in (pool.read if pool else read)(chosen, preprocess, whole=False):
            if isinstance(item, Failure):
                warn(f"left out: {item.error}")
            else:
                made.append(preprocess.batch([seen(item[1], preprocess)]).float().numpy())
    if not made:
        raise UsageError("none of the photographs can be read, so there are no baselines")
    file = io.BytesIO()
    np.save(file, np.concatenate(made))
    write_whole(out, file.getvalue())
    return len(made)
