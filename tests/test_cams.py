"""The formulas, by hand and against a slow transcription of the paper."""

from __future__ import annotations

import torch

from camkit import cams


def test_gradcam_of_a_map_computed_by_hand() -> None:
    features = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[1.0, 0.0], [0.0, 1.0]]]])
    # Means of the gradients: 0.5 for the first channel, -2 for the second.
    gradients = torch.tensor([[[[[0.0, 1.0], [0.0, 1.0]], [[-2.0, -2.0], [-2.0, -2.0]]]]])
    expected = torch.tensor([[[[0.5 - 2.0, 1.0], [1.5, 2.0 - 2.0]]]])
    torch.testing.assert_close(cams.gradcam(features, gradients), expected)
    torch.testing.assert_close(cams.gradcam(features, gradients, reduction="mean"), expected / 2)


def test_gradcam_equals_the_papers_sums_written_out() -> None:
    features, gradients = torch.randn(2, 3, 4, 5), torch.randn(6, 2, 3, 4, 5)
    maps = cams.gradcam(features, gradients)
    assert maps.shape == (2, 6, 4, 5)
    for b in range(2):
        for t in range(6):
            total = torch.zeros(4, 5)
            for k in range(3):
                alpha = sum(gradients[t, b, k, i, j] for i in range(4) for j in range(5)) / 20
                total += alpha * features[b, k]
            torch.testing.assert_close(maps[b, t], total)


def test_activations_are_the_mean_over_channels() -> None:
    features = torch.tensor([[[[1.0, 2.0]], [[3.0, -6.0]]]])
    torch.testing.assert_close(cams.activations(features), torch.tensor([[[[2.0, -2.0]]]]))


def test_half_precision_is_reduced_in_float32_and_double_stays_double() -> None:
    features = torch.full((1, 4096, 1, 2), 1.0, dtype=torch.bfloat16)
    gradients = torch.ones_like(features)[None]
    maps = cams.gradcam(features, gradients)
    assert maps.dtype == torch.float32
    assert maps.eq(4096).all()  # a sum in bfloat16 would stick at 256
    assert cams.gradcam(features.double(), gradients.double()).dtype == torch.float64
