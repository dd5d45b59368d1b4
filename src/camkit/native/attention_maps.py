"""Maps from the attention of all blocks: how one follows the other, and what the methods make of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from math import prod

import torch
from torch import Tensor

from camkit.contracts.explainer import Sweep
from camkit.core import attention_formulas as formulas
from camkit.core.hooks import Hook
from camkit.core.layout import MAX_PREFIX, Layout, OpenLayout, token_layout
from camkit.core.stand_in import wide
from camkit.core.torch_errors import NoGradient
from camkit.errors import LayerError, UsageError
from camkit.native.attention import WITHOUT, Attention, Block, Seen, first_of, watched, with_tokens
from camkit.native.gradients import class_gradients, fitting, scaled

# How far the scores of the last block, computed once more by what is above it, may be off, of the largest.
SAME = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}


@dataclass(frozen=True)
class Attended:
    """The attentions of one forward of a sweep, as one chain over the tokens of the images.

    scores: `[B, n]`, of that forward; its graph is used, and kept.
    """

    sweep: Sweep
    seen: Seen
    scores: Tensor

    @cached_property
    def chain(self) -> tuple[Attention, ...]:
        """The attentions from the first to the last that the scores depend on."""
        found = tuple(self.seen.attentions)
        while found and not _depends(self.scores, found[-1].output):
            found = found[:-1]  # a pool that is not used, as in SiglipForImageClassification
        if self.seen.attentions and not found:
            raise NoGradient(f"no differentiable steps lead from attention to the scores: {WITHOUT}")
        if not found:
            raise UsageError(
                "no attention is seen in the model, neither torch's own nor a softmax that multiplies "
                "values: attention-rollout, generic-attention, legrad and grad-eclip are for vision "
                "transformers"
            )
        if found[0].queries != found[0].keys:
            raise _broken(found[0], found[0].keys)
        for before, here in pairwise(found):
            self._check(before, here, is_last=here is found[-1])
            if not _depends(here.output, before.output):
                raise NoGradient(
                    "the model has attentions side by side, of which none sees what the other makes, or "
                    f"through no differentiable steps: {WITHOUT}"
                )
        return found

    def _check(self, before: Attention, here: Attention, *, is_last: bool) -> None:
        """Every attention is over the tokens of the one before, apart from class tokens and a pool."""
        if here.queries == here.keys == before.keys:
            return
        prefix = self.layout.prefix
        if 0 < here.keys - before.keys <= min(here.queries, MAX_PREFIX) and here.queries < here.keys:
            joins = before.queries == before.keys and not prefix  # class tokens, in front
            if joins:
                return
        elif here.keys == before.keys and here.queries == before.queries < here.keys:
            return  # class tokens that joined before
        elif here.keys == before.keys and here.queries < here.keys and is_last and not prefix:
            return  # a pool: there is no class token that could attend instead
        raise _broken(here, before.keys)

    @property
    def is_pooled(self) -> bool:
        """Whether the last attention pools all tokens of the one before."""
        *before, last = self.chain
        return bool(before) and before[-1].queries == last.keys > last.queries

    @cached_property
    def layout(self) -> Layout:
        """How the tokens of the first attention lie over the images."""
        try:
            return token_layout(self.seen.attentions[0].keys, self.sweep.inputs.shape, self.sweep.module)
        except OpenLayout:
            raise
        except LayerError as error:
            raise UsageError(f"{error}: {WITHOUT}") from None

    def _read(self, gradients: Tensor) -> Tensor:
        """Which tokens scores are read from, `[T, B, n]`: those whose last attention changes them.

        gradients: `[T, *output.shape]`, by what the last attention returns. A class token, or all patches
        where their mean is taken; each counts as much as the others.
        """
        last = self.chain[-1]
        used = gradients.reshape(-1, *last.shape).ne(0).any(4).any(2)
        if not used.any():
            raise UsageError(
                "the score has no gradient at the last attention, so nothing tells which tokens "
                f"it is read from, as where a head is zero or a probability is 1: {WITHOUT}"
            )
        if last.queries < last.keys and not self.is_pooled:  # class tokens are in front
            used = torch.cat([used, used.new_zeros(*used.shape[:2], last.keys - last.queries)], 2)
        return used.to(wide(last.values).dtype) / used.sum(2, keepdim=True).clamp(min=1)

    def to_maps(self, relevance: Tensor) -> Tensor:
        """`[B, T, h, w]` of `[T, B, k]`."""
        return self.layout.to_map(relevance[..., None])[:, :, 0].movedim(0, 1).contiguous()

    def rollout(self) -> Tensor:
        """Attention rollout, `[B, 1, h, w]`, to the tokens that the highest score is read from."""
        best = self.scores.detach().argmax(1, keepdim=True)
        (gradient,) = next(class_gradients(self.scores, best, [self.chain[-1].output], keep=True))
        weights = (attention.weights() for attention in reversed(self.chain))
        return self.to_maps(formulas.attention_rollout(weights, self._read(gradient)[0])[None])

    def generic(self, gradients: Sequence[Tensor]) -> Tensor:
        """Generic attention, `[B, T, h, w]`. gradients: `[T, *output.shape]` by the output of each."""
        relevance = []
        for parts in zip(*(torch.split(of_one, self._at_once) for of_one in gradients), strict=True):
            pairs = zip(reversed(self.chain), reversed(parts), strict=True)
            found = ((attention.weights(), attention.slopes(part)) for attention, part in pairs)
            relevance.append(formulas.generic_attention(found, self._read(parts[-1])))
        return self.to_maps(torch.cat(relevance))

    @property
    def _at_once(self) -> int:
        """Of how many classes the slopes of one attention are in memory: they may be large."""
        largest = max(prod(attention.shape[:3]) * attention.keys for attention in self.chain)
        return fitting(4 * largest, self.scores.device)

    def legrad(self, targets: Tensor) -> Tensor:
        """LeGrad of the classes `targets` `[B, T]`, `[B, T, h, w]`."""
        found = [formulas.legrad(slopes) for slopes in self._block_slopes(targets)]
        return self.to_maps(torch.cat(found))

    def eclip(self, targets: Tensor) -> Tensor:
        """Grad-ECLIP of the classes `targets` `[B, T]`, `[B, T, h, w]`."""
        last = self.chain[-1]
        if last.asked is None:
            raise UsageError(
                "grad-eclip needs the queries and keys of the last attention, and its weights are not "
                "seen to come from their products: legrad needs none"
            )
        count, (query, keys) = self.seen.attentions[0].keys, (wide(one) for one in last.asked)
        values, keys = wide(last.values)[:, :, -self._patches :], keys[:, :, -self._patches :]
        parts = []
        for (gradient,) in class_gradients(self.scores, targets, [last.output], keep=True):
            token = self._token(gradient)
            own = token if (token != token[0]).any() else token[:1]  # nearly always one for all scores
            parts.append(
                formulas.grad_eclip(
                    _of_token(wide(gradient).reshape(-1, *last.shape), token),
                    values,
                    _of_token(query.expand(len(own), *query.shape), own),
                    keys,
                )
            )
        found = torch.cat(parts)
        return self.to_maps(torch.cat([found.new_zeros(*found.shape[:2], count - self._patches), found], 2))

    def _token(self, gradients: Tensor) -> Tensor:
        """The one class token, or pool, that scores are read from, int64 `[T, B]`; see `_read`."""
        read = self._read(gradients) > 0
        patches = read[..., 0 if self.is_pooled else self.layout.prefix :]
        if read.sum(2).max() > 1 or (not self.is_pooled and patches.any()):
            raise UsageError(
                "grad-eclip looks at one class token, or one pool, and the scores of this model are "
                "read from other tokens: legrad takes these"
            )
        return read.to(torch.uint8).argmax(2)

    @property
    def _patches(self) -> int:
        """How many tokens lie over the images."""
        return prod(self.layout.grid)

    # --- LeGrad: what each block by itself gives ----------------------------------------------------

    def _block_slopes(self, targets: Tensor) -> Iterator[Iterator[Tensor]]:
        """For each chunk of classes the slopes of each block, of the score of what that block returns.

        Where a pool follows, they are by its weights; else by those of the block itself.
        """
        count = len(self._blocks)
        scores, stacked, axis, above = self._above(len(targets) * count)
        _check_scores(scores[-len(targets) :].detach(), self.scores.detach())
        every = targets.repeat(count, 1)
        if self.is_pooled:
            (pool,) = above.attentions
            for (gradient,) in class_gradients(scores, every, [pool.output]):
                yield iter(pool.slopes(gradient).chunk(count, 1))
            return
        for (gradient,) in class_gradients(scores, every, [stacked]):
            for part in torch.split(gradient, self._at_once):
                yield self._own_slopes(part.chunk(count, axis + 1))

    def _own_slopes(self, gradients: Sequence[Tensor]) -> Iterator[Tensor]:
        """Slopes of each block from gradients by what it returns, `[T, *tokens.shape]`."""
        for attention, block, gradient in zip(self.chain, self._blocks, gradients, strict=True):
            found = [
                scaled(
                    [block.tokens, attention.output],
                    partial(_vector_product, block.tokens, attention.output, of_class),
                )[0]
                for of_class in gradient
            ]
            yield attention.slopes(torch.stack(found))

    @cached_property
    def _blocks(self) -> list[Block]:
        """The block of each attention, without a pool."""
        within = self.chain[:-1] if self.is_pooled else self.chain
        if any(attention.queries != attention.keys for attention in within):
            raise UsageError("legrad is not defined for attention of class tokens alone, as in CaiT")
        blocks = [self.seen.blocks.get(index) for index in range(len(within))]
        found = [block for block in blocks if block is not None]
        if len(found) < len(blocks) or len({block.kind for block in found}) > 1:
            raise UsageError(
                "legrad needs blocks of one kind around each attention, which return tokens "
                "[B, N, C]: this model has none, or several kinds"
            )
        return found

    def _above(self, rows: int) -> tuple[Tensor, Tensor, int, Seen]:
        """Scores `[rows, n]` of the tokens of all blocks in place of those of the last one.

        Also these tokens, the axis of the images in them, and the attentions behind. The whole model runs
        once more, for one image, which tells the axis even where there are as many tokens as images.
        """
        sweep, blocks = self.sweep, self._blocks
        with watched(sweep.module, 1) as watch:
            given: list[tuple[Tensor, int]] = []

            def replace(output: object) -> object:
                axis = 0 if len(first_of(output)) == 1 else 1
                stacked = torch.cat([block.tokens.detach() for block in blocks], axis).requires_grad_()
                given.append((stacked, axis))
                watch.restart(rows)
                torch.set_grad_enabled(True)
                return with_tokens(output, stacked.clone())

            block = sweep.module.get_submodule(blocks[-1].name)
            with block.register_forward_hook(Hook(replace), prepend=True), torch.no_grad():
                scores = sweep.module(sweep.inputs[:1], *(extra[:1] for extra in sweep.extras))
        return scores, *given[0], watch.seen


def _of_token(by_head: Tensor, token: Tensor) -> Tensor:
    """Of `[T, B, H, n, d]` the tokens `[T, B]`, `[T, B, H, d]`."""
    index = token[:, :, None, None, None].expand(-1, -1, by_head.shape[2], 1, by_head.shape[4])
    return by_head.gather(3, index)[:, :, :, 0]


def _depends(tensor: Tensor, on: Tensor) -> bool:
    """Whether the graph of a tensor leads back to another one."""
    ahead, seen = [tensor.grad_fn], {tensor.grad_fn, None}
    while ahead:
        node = ahead.pop(0)
        if node is not None and (node is on.grad_fn or getattr(node, "variable", None) is on):
            return True
        fresh = {before for before, _ in node.next_functions} - seen if node is not None else set()
        seen |= fresh
        ahead += fresh
    return False


def _vector_product(tokens: Tensor, output: Tensor, gradient: Tensor, scale: float) -> tuple[Tensor, ...]:
    """The gradient of `sum(tokens * gradient)` by an attention's output, times `scale`."""
    total = (wide(tokens) * gradient).sum() * scale
    return torch.autograd.grad(total, output, retain_graph=True)


def _check_scores(again: Tensor, scores: Tensor) -> None:
    """The last block's own tokens give the model's own scores, or what is above was misunderstood."""
    tolerance = SAME[scores.dtype] * float(scores.nan_to_num().abs().max())
    same = again.shape == scores.shape
    if not same or not torch.allclose(again, scores, rtol=0, atol=tolerance, equal_nan=True):
        raise UsageError(
            "legrad cannot tell the scores of each block: what is above the last one gives others than the "
            "model's when it runs for several blocks at once"
        )


def _broken(attention: Attention, before: int) -> UsageError:
    return UsageError(
        f"the tokens of the model do not stay the same: {before}, then {attention.queries} that attend to "
        f"{attention.keys}, as where they are pooled or reduced, or channels attend: {WITHOUT}"
    )
