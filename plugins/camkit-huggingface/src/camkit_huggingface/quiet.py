"""transformers, without what it says beside."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import transformers


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' log and progress on stderr, and with the random generators left as they are."""
    log = transformers.utils.logging
    level, bars, state = log.get_verbosity(), log.is_progress_bar_enabled(), random.getstate()
    log.set_verbosity(log.CRITICAL)
    log.disable_progress_bar()
    try:
        with warnings.catch_warnings(), torch.random.fork_rng([]):
            warnings.simplefilter("ignore")
            yield
    finally:
        random.setstate(state)
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
