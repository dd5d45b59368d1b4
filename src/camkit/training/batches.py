"""Batches for a training: the same ones with any number of processes that read, and after a break."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from camkit.core import devices
from camkit.core.device_names import usable_cores
from camkit.training.dataset import Photos


class Shuffled(Sampler[int]):
    """`count` photographs in an order that `epoch` and `seed` decide; numbered on from epoch to epoch.

    So a process that stays from one epoch to the next is told in which it is.
    """

    def __init__(self, count: int, seed: int) -> None:
        self._count, self._seed = count, seed
        self.epoch = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self.epoch)
        order = torch.randperm(self._count, generator=generator)
        return iter((order + self.epoch * self._count).tolist())


class Augmented(Dataset[Any]):
    """Photographs by the numbers of `Shuffled`, each changed at random in a way that its number decides."""

    def __init__(self, photos: Photos[Any], seed: int) -> None:
        self._photos, self._seed = photos, seed

    def __len__(self) -> int:
        return len(self._photos)

    def __getitem__(self, number: int) -> Any:
        with devices.random_state_kept(devices.CPU, self._seed * 2**32 + number):
            return self._photos[number % len(self._photos)]


def loader(
    photos: Any, device: torch.device, size: int, workers: int | None, **order: Any
) -> DataLoader[Any]:
    """Batches of `size`, read by `workers` processes ahead of the training.

    workers: by default half of the cores beside an accelerator, at most 8, and none on a CPU, which has
    other things to do. order: what `DataLoader` is told of the order.
    """
    if workers is None:
        workers = 0 if device.type == "cpu" else max(1, min(8, usable_cores() // 2))
    return DataLoader(
        photos,
        batch_size=size,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=devices.pins(device),
        **order,
    )
