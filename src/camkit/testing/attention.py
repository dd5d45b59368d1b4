"""The check of methods that look at attention weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from camkit.errors import CamkitError
from camkit.testing.explainers import maps_of
from camkit.testing.kit import CLASSES, Subject, equal, raises, reference_inputs, reference_model, untouched


def check_attention(subject: Subject) -> None:
    """Methods that `needs_attention` explain a transformer as all others must, and refuse other networks.

    Where a library looks for attention by the names of modules, and finds none, it returns nothing.
    """
    inputs = reference_inputs(2)
    for method in subject.plugin.needs_attention:
        model = reference_transformer()
        with untouched(model, inputs, f"by {method}"):
            maps = maps_of(subject, method, [0, 3], model, inputs, "patches")
        assert maps.shape == (2, 4, 4) and maps.isfinite().all() and not maps.requires_grad, (
            f"{method} returns {list(maps.shape)}, or no finite values, or a graph"
        )
        for row, target in enumerate((0, 3)):
            alone = maps_of(subject, method, target, model, inputs[row : row + 1], "patches")
            equal(maps[row : row + 1], alone, f"{method}, image {row} of a batch and alone", 1e-4)
        other = maps_of(subject, method, [3, 0], model, inputs, "patches")
        agnostic = method in subject.plugin.class_agnostic
        assert torch.equal(maps, other) == agnostic, f"class_agnostic is wrong about {method}"
        with torch.no_grad():
            frozen = maps_of(subject, method, [0, 3], model.requires_grad_(False), inputs, "patches")
        equal(frozen, maps, f"{method} on a frozen model", 1e-4)
        other_model = reference_model()
        with (
            untouched(other_model, inputs, f"by {method} where it refuses"),
            raises(CamkitError, f"a model without attention under {method}"),
        ):
            maps_of(subject, method, [0, 3], other_model, inputs)


class Attending(nn.Module):
    """One block of a transformer, with fused attention of one head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = (
            nn.LayerNorm(width),
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Tokens `[B, N, width]` of tokens."""
        query, key, value = self.qkv(self.norm(x))[:, None].chunk(3, -1)
        return x + self.out(nn.functional.scaled_dot_product_attention(query, key, value)[:, 0])  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """A small classifier, `[B, 3, 16, 16]` to four scores: of a class token over 4 x 4 patches."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.head = nn.Conv2d(3, 8, 4, stride=4), nn.Linear(8, CLASSES)
        self.blocks = nn.Sequential(Attending(8), Attending(8))
        self.norm, self.token = nn.LayerNorm(8), nn.Parameter(torch.randn(1, 1, 8))

    def forward(self, x: Tensor) -> Tensor:
        """Scores."""
        tokens = torch.cat([self.token.expand(len(x), -1, -1), self.patches(x).flatten(2).mT], 1)
        return self.head(self.norm(self.blocks(tokens))[:, 0])  # type: ignore[no-any-return]


def reference_transformer() -> nn.Module:
    """A seeded `Transformer` in eval mode."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return Transformer().eval()
