"""The mathematics of attention: from weights, and gradients with respect to them, to maps over tokens.

Shapes, everywhere:
    weights    [B, H, q, k]      of one attention: q tokens attend to k tokens, in each of H heads
    slopes     [T, B, H, q, k]   of T class scores with respect to the weights
    read       [B, n] or [T, B, n]  which of the last tokens a score is read from; sums to 1
    relevance  [B, k] or [T, B, k]  of the k first tokens; never negative

Attentions are given from the last to the first, one by one, so that one matrix at a time is in memory. The
papers multiply matrices `[n, n]` from the first to the last, and keep the rows that are read: the same.

Where fewer tokens attend than are attended to, they are class tokens in front of the others, which stay as
they are; where they are in place of all others, as many as are read, they pool them. Tokens that have not
joined yet are cut off in front.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def attention_rollout(weights: Iterable[Tensor], read: Tensor) -> Tensor:
    """Attention rollout, `[B, k]`: the product over the attentions of `(A + I) / 2`, with rows of sum 1.

    `A` is the mean over heads; `I` stands for the residual connection. Abnar and Zuidema 2020,
    arXiv:2005.00928, section 3.
    """
    relevance = read
    for attention in weights:
        relevance = _back(relevance, attention.mean(1), normalised=True)
    return relevance


def generic_attention(attentions: Iterable[tuple[Tensor, Tensor]], read: Tensor) -> Tensor:
    """Generic attention explainability, `[T, B, k]`: `R <- R + mean_h relu(slopes A) R`, from `R = I`.

    attentions: weights and slopes. Chefer, Gur and Wolf 2021, arXiv:2103.15679, equations 5 and 6.
    """
    relevance = read
    for weights, slopes in attentions:
        relevance = _back(relevance, (slopes * weights).clamp(min=0).mean(2), normalised=False)
    return relevance


def legrad(slopes: Iterable[Tensor]) -> Tensor:
    """LeGrad, `[T, B, k]`: the mean over attentions, heads and attending tokens of `relu(slopes)`.

    slopes: of the score that each block by itself gives. Bousselham et al. 2025, arXiv:2404.03214.
    """
    found = [of_one.clamp(min=0).mean((2, 3)) for of_one in slopes]
    return torch.stack(found).mean(0)


def grad_eclip(gradients: Tensor, values: Tensor, query: Tensor, keys: Tensor) -> Tensor:
    """Grad-ECLIP, `[T, B, k]`: `relu(sum_c w_c l_i v_ic)` for each patch `i`.

    gradients: `w`, `[T, B, H, d]`, of the scores by what the last attention gives the class token. values:
    `[B, H, k, d]` of the patches. query: `[T, B, H, e]` of the class token, or `[1, B, H, e]` where it is
    the same for all scores; keys: `[B, H, k, e]`. `l` is the cosine of the query and each key, all heads
    together, brought to 0 to 1 over the patches: looser than the weights of attention, which are sparse.
    Zhao et al. 2024 and 2025, arXiv:2502.18816.
    """
    along = torch.einsum("tbhd,bhkd->tbk", gradients, values)
    flat, others = query.flatten(2), keys.transpose(1, 2).flatten(2)
    cosines = torch.cosine_similarity(flat[:, :, None], others, dim=3)
    low, high = cosines.amin(2, keepdim=True), cosines.amax(2, keepdim=True)
    return (along * (cosines - low) / (high - low).clamp(min=torch.finfo(cosines.dtype).tiny)).clamp(min=0)


def _back(relevance: Tensor, mixing: Tensor, *, normalised: bool) -> Tensor:
    """From the relevance of tokens behind an attention, `[..., n]`, to that of those before, `[..., k]`.

    mixing: `[..., q, k]`, how much of each token goes into each that attends.
    """
    queries, keys = mixing.shape[-2:]
    if queries < keys and relevance.shape[-1] == queries:
        return _times(relevance, mixing)  # a pool has no residual connection with what it pools
    relevance = relevance[..., -keys:]
    attending, rest = relevance[..., :queries], relevance[..., queries:]
    if normalised:
        attending = attending / (1 + mixing.sum(-1))
    elif attending.ndim < mixing.ndim - 1:
        attending = attending.expand(mixing.shape[:-1])
    rest = rest.expand(*attending.shape[:-1], -1)
    return torch.cat([attending, rest], -1) + _times(attending, mixing)


def _times(rows: Tensor, mixing: Tensor) -> Tensor:
    rows = rows.expand(mixing.shape[:-1])
    with torch.autocast(mixing.device.type, enabled=False):
        return (rows[..., None, :] @ mixing)[..., 0, :]
