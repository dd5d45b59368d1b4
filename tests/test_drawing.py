"""Pictures of maps, by hand, against torch and against matplotlib."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from camkit.drawing import evidence
from camkit.drawing.evidence import Scale, extent, is_flat, signed
from camkit.drawing.overlay import overlay
from camkit.drawing.sheet import Panel, sheet
from camkit.drawing.style import Style
from camkit.errors import MapError, UsageError
from camkit.images.preprocess import Preprocess

Pixels = np.ndarray

LESSON = Style(look="lesson")
HEAT = Style(look="lesson", alpha=1.0)  # the colours of the map alone
MAGMA = (colormaps["magma"](np.arange(256))[:, :3] * 255).round().astype(int)
COLDEST, HOTTEST = MAGMA[0], MAGMA[255]


def numbers(image: Image.Image) -> Pixels:
    """`[h, w, 3]`, as numbers that do not wrap around."""
    return np.asarray(image).astype(int)


def photo(width: int, height: int) -> Image.Image:
    """Random colours."""
    generator = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def heat(map: Tensor, size: tuple[int, int], style: Style = HEAT) -> Pixels:
    """The colours of a map on a black picture of `size`."""
    return numbers(overlay(Image.new("RGB", size), map, style))


def random_map(height: int, width: int) -> Tensor:
    """Signed values."""
    return torch.randn(height, width, generator=torch.Generator().manual_seed(height * 100 + width))


# --- the lesson's look ----------------------------------------------------------------------------


def test_a_two_by_two_map_by_hand() -> None:
    map = torch.tensor([[-1.0, 0.5], [2.0, 3.5]])  # over its range: 0, 1/3, 2/3, 1
    image = photo(4, 4)
    found = numbers(overlay(image, map, LESSON))
    weight = [0, 0.25, 0.75, 1]  # of the second value, at the centres of four pixels
    for y in range(4):
        for x in range(4):
            value = weight[x] / 3 + weight[y] * 2 / 3
            colour = np.array(colormaps["magma"](value)[:3]) * 255
            expected = 0.4 * np.array(image.getpixel((x, y))) + 0.6 * colour
            assert np.abs(found[y, x] - expected).max() <= 0.51, (x, y)


@pytest.mark.parametrize("shape", [(7, 7), (11, 11), (3, 5), (1, 4)])
@pytest.mark.parametrize("size", [(224, 224), (45, 31), (6, 9)])
@pytest.mark.parametrize("cmap", ["magma", "viridis"])
def test_any_map_is_torchs_bilinear_resize_in_the_colour_map(
    shape: tuple[int, int], size: tuple[int, int], cmap: str
) -> None:
    map, image = random_map(*shape), photo(*size)
    scaled = (map - map.min()) / (map.max() - map.min())
    large = F.interpolate(scaled[None, None].double(), size[::-1], mode="bilinear", align_corners=False)
    colours = colormaps[cmap](large[0, 0].numpy())[..., :3] * 255
    expected = 0.7 * numbers(image) + 0.3 * colours
    found = numbers(overlay(image, map, Style(look="lesson", alpha=0.3, cmap=cmap)))
    # A value on the edge between two of the 256 colours may fall to either side.
    assert np.abs(found - expected).max() <= 2.5
    assert np.abs(found - expected).mean() <= 0.3


def test_it_looks_as_the_lessons_matplotlib_code_draws_it() -> None:
    map, image = random_map(11, 11), photo(16, 16).resize((352, 352))
    figure = Figure(figsize=(3.52, 3.52), dpi=100)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    axes.imshow(np.asarray(image), extent=(0, 352, 352, 0))
    axes.imshow(map.numpy(), alpha=0.6, extent=(0, 352, 352, 0), interpolation="bilinear", cmap="magma")
    canvas.draw()
    expected = np.asarray(canvas.buffer_rgba())[..., :3].astype(int)
    difference = np.abs(numbers(overlay(image, map, LESSON)) - expected)
    assert difference[16:-16, 16:-16].max() <= 6  # matplotlib has its own idea of the border
    assert difference.mean() <= 1.5


def test_the_scale_is_that_of_the_raw_map_not_of_what_the_picture_samples() -> None:
    map = torch.zeros(4, 4)
    map[0, 0] = 1
    found = heat(map, (2, 2))  # each pixel is the mean of four values
    assert np.abs(found[0, 0] - MAGMA[64]).max() <= 4
    assert np.abs(found[1, 1] - COLDEST).max() == 0


def test_the_scale_does_not_depend_on_shift_and_stretch() -> None:
    map = random_map(5, 6)
    np.testing.assert_array_equal(heat(map, (30, 20)), heat(8 * map + 4, (30, 20)))
    assert not np.array_equal(heat(map, (30, 20)), heat(-map, (30, 20)))


def test_a_given_scale_fixes_the_colours() -> None:
    map = torch.tensor([[0.0, 1.0, 4.0]])
    found = numbers(overlay(Image.new("RGB", (3, 1)), map, HEAT, scale=Scale(0.0, 2.0)))[0]
    assert np.abs(found[0] - COLDEST).max() == 0
    assert np.abs(found[1] - MAGMA[128]).max() <= 2
    assert np.abs(found[2] - HOTTEST).max() == 0  # what is beyond the scale takes its end
    own = numbers(overlay(Image.new("RGB", (3, 1)), map, HEAT))
    np.testing.assert_array_equal(
        own, numbers(overlay(Image.new("RGB", (3, 1)), map, HEAT, scale=Scale(0, 4)))
    )
    assert extent([map, torch.tensor([[-3.0, 2.0]])]) == (-3.0, 4.0)


def test_alpha_zero_is_the_photograph_and_alpha_one_the_heat() -> None:
    map, image = random_map(3, 3), photo(20, 10)
    np.testing.assert_array_equal(
        numbers(overlay(image, map, Style(look="lesson", alpha=0))), numbers(image)
    )
    np.testing.assert_array_equal(numbers(overlay(image, map, HEAT)), heat(map, (20, 10)))


def test_the_photograph_is_left_as_it_was_and_may_have_any_mode() -> None:
    image = photo(6, 4).convert("L")
    before = image.tobytes()
    assert overlay(image, random_map(2, 2), LESSON).mode == "RGB"
    assert image.tobytes() == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_maps_of_any_float_type_and_with_a_graph(dtype: torch.dtype) -> None:
    map = torch.tensor([[-1.0, 0.5], [2.0, 3.5]])
    typed = map.to(dtype).requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = heat(typed, (9, 9))
    np.testing.assert_array_equal(found, heat(map, (9, 9)))


def test_the_widest_range_of_numbers_is_drawn() -> None:
    found = heat(torch.tensor([[-3.4e38, 3.4e38]]), (2, 1))[0]
    np.testing.assert_array_equal(found, [COLDEST, HOTTEST])


# --- rectified maps -------------------------------------------------------------------------------


def test_relu_shows_only_what_speaks_for_the_class() -> None:
    found = heat(torch.tensor([[-8.0, 0.0, 1.0, 2.0]]), (4, 1), Style(look="lesson", relu=True, alpha=1))[0]
    np.testing.assert_array_equal(found[:2], [COLDEST] * 2)
    assert np.abs(found[2] - MAGMA[128]).max() <= 2
    np.testing.assert_array_equal(found[3], HOTTEST)


def test_counterfactual_shows_only_what_speaks_against_it() -> None:
    map = torch.tensor([[-2.0, -1.0, 0.0, 8.0]])
    found = heat(map, (4, 1), Style(look="lesson", counterfactual=True, alpha=1))[0]
    np.testing.assert_array_equal(found[0], HOTTEST)
    np.testing.assert_array_equal(found[2:], [COLDEST] * 2)
    np.testing.assert_array_equal(found, heat(-map, (4, 1), Style(look="lesson", relu=True, alpha=1))[0])


@pytest.mark.parametrize("value", [-2.0, 0.0, 5.0])
@pytest.mark.parametrize(
    "style", [LESSON, Style(look="lesson", relu=True), Style(look="lesson", counterfactual=True)]
)
def test_a_constant_map_has_the_lowest_colour_not_the_highest(value: float, style: Style) -> None:
    map = torch.full((7, 7), value)
    image = photo(30, 20)
    assert is_flat(map)
    expected = 0.4 * numbers(image) + 0.6 * COLDEST
    assert np.abs(numbers(overlay(image, map, style)) - expected).max() <= 1


@pytest.mark.parametrize(
    ("height", "width", "cells"), [(1, 1, 1), (300, 1000, 7), (700, 700, 200), (2, 9, 600)]
)
def test_products_are_the_same_in_parts(height: int, width: int, cells: int) -> None:
    rng = np.random.default_rng(height)
    a, b = rng.standard_normal((height, cells)), rng.standard_normal((cells, width))
    np.testing.assert_allclose(evidence._product(a, b), a @ b, rtol=0, atol=1e-12)


def test_a_map_with_nothing_to_show_is_flat() -> None:
    negative = -random_map(4, 4).abs() - 1
    assert not is_flat(negative)
    assert is_flat(signed(negative, Style(relu=True)))
    assert is_flat(signed(-negative, Style(counterfactual=True)))
    found = heat(negative, (8, 8), Style(look="lesson", relu=True, alpha=1))
    assert np.abs(found - COLDEST).max() == 0


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_map_that_is_not_finite_is_refused(value: float) -> None:
    map = torch.tensor([[0.0, value], [1.0, value]])
    with pytest.raises(MapError, match=r"2 .*4 .*NaN.*float32") as caught:
        overlay(photo(4, 4), map, Style())
    assert caught.value.exit_code == 1


def test_an_unknown_colour_map_is_refused_with_a_suggestion() -> None:
    with pytest.raises(UsageError, match=r"'magam'.*'magma'") as caught:
        Style(cmap="magam")
    assert caught.value.exit_code == 2
    with pytest.raises(UsageError, match=r"'qqqq'$"):
        Style(cmap="qqqq")


@pytest.mark.parametrize("alpha", [-0.01, 1.01, math.nan, 60])
def test_an_opacity_out_of_range_is_refused(alpha: float) -> None:
    with pytest.raises(UsageError, match=f"alpha .*0 and 1.*{alpha}"):
        Style(alpha=alpha)


# --- the whole photograph -------------------------------------------------------------------------

PLAIN = Style(caption=False)
FULL = Style(alpha=1.0)


def test_the_map_lies_exactly_over_its_box() -> None:
    image, map = photo(100, 80), random_map(3, 4)
    found = numbers(overlay(image, map, PLAIN, (10, 20, 50, 64)))
    inside = numbers(overlay(image.crop((10, 20, 50, 64)), map, PLAIN))
    np.testing.assert_array_equal(found[20:64, 10:50], inside)


def test_what_the_model_did_not_see_is_darker_behind_a_thin_line() -> None:
    image = Image.new("RGB", (20, 20), (200, 100, 0))
    found = numbers(overlay(image, torch.zeros(2, 2), PLAIN, (4, 6, 16, 14)))
    expected = np.broadcast_to((110, 55, 0), (20, 20, 3)).copy()
    expected[5:15, 4:16] = expected[6:14, 3:17] = 255
    expected[6:14, 4:16] = (200, 100, 0)
    assert np.abs(found - expected).max() <= 1


def test_a_photograph_that_the_model_saw_all_of_has_no_line() -> None:
    image, map = photo(30, 20), torch.zeros(3, 3)
    np.testing.assert_array_equal(numbers(overlay(image, map, PLAIN, (0, 0, 30, 20))), numbers(image))


def test_the_border_of_a_box_between_pixels_goes_by_their_centres() -> None:
    peak = torch.tensor([[0.0, 1.0, 0.0]])  # its middle is that of the box, 3.5 pixels from the left
    row = numbers(overlay(Image.new("RGB", (8, 1)), peak, FULL, (1.4, 0, 5.6, 1)))[0].sum(1)
    assert row[[0, 7]].tolist() == [765, 0] and row[6] == 765  # the lines beside five pixels
    assert row[1:6].argmax() == 2
    assert (row[[2, 1]] == row[[4, 5]]).all()


def test_a_box_that_reaches_beyond_the_photograph() -> None:
    image, map = photo(100, 60), random_map(4, 4)
    padded = Image.new("RGB", (200, 60))
    padded.paste(image, (30, 0))
    whole = numbers(overlay(padded, map, PLAIN))
    found = numbers(overlay(image, map, PLAIN, (-30, 0, 170, 60)))
    np.testing.assert_array_equal(found, whole[:, 30:130])


def test_a_box_thinner_than_a_pixel_leaves_the_photograph_dimmed() -> None:
    strip = Image.new("RGB", (1, 50), "red")
    box = Preprocess(resize=256).box(*strip.size)
    found = numbers(overlay(strip, random_map(7, 7), PLAIN, (0.6, *box[1:2], 0.9, *box[3:])))
    assert found.shape == (50, 1, 3) and found.max() < 255


PREPROCESSINGS = {
    "a crop": Preprocess(size=(96, 96), resize=110),
    "no margin": Preprocess(size=(64, 96)),
    "squashed": Preprocess(size=(96, 64), fit="squash"),
    "squashed with a margin": Preprocess(size=(96, 96), resize=110, fit="squash"),
    "padded": Preprocess(size=(64, 128), resize=64),
}


@pytest.mark.parametrize("case", PREPROCESSINGS)
@pytest.mark.parametrize("place", [(0.35, 0.4), (0.5, 0.5), (0.66, 0.58)])
@pytest.mark.parametrize("size", [(300, 200), (200, 260)])
def test_heat_in_the_whole_photograph_is_where_the_thing_is(
    case: str, place: tuple[float, float], size: tuple[int, int]
) -> None:
    preprocess = PREPROCESSINGS[case]
    x, y = int(place[0] * size[0]), int(place[1] * size[1])
    image = Image.new("RGB", size)
    image.paste((255, 255, 255), (x - 6, y - 6, x + 6, y + 6))
    view = torch.from_numpy(np.asarray(preprocess.view(image).convert("L")).astype(np.float32))
    map = F.avg_pool2d(view[None], 4)[0]  # a map that shines where the view is bright
    left, top, right, bottom = preprocess.box(*size)
    black = Image.new("RGB", size)
    found = numbers(overlay(black, map, FULL, (left, top, right, bottom))).sum(2)
    found[found == 765] = 0  # the line around what the model saw
    middle = np.argwhere(found >= found.max() - 60).mean(0)
    # As exact as the map is: half the height and width that one of its values covers.
    assert abs(middle[0] - y) <= (bottom - top) / map.shape[0] / 2
    assert abs(middle[1] - x) <= (right - left) / map.shape[1] / 2


# --- sheets ---------------------------------------------------------------------------------------

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (255, 0, 255)]


def panels(count: int, size: tuple[int, int] = (60, 60)) -> list[Panel]:
    """Panels in plain colours, to be found again."""
    return [Panel(f"title {i}", Image.new("RGB", size, colour)) for i, colour in enumerate(COLOURS[:count])]


def places(picture: Image.Image) -> list[tuple[int, int, int, int]]:
    """Where each of the colours is: left, top, right, bottom; those that are there."""
    found = numbers(picture)
    boxes = []
    for colour in COLOURS:
        rows, columns = np.nonzero((found == colour).all(2))
        if len(rows) > 1000:
            boxes.append((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
    return boxes


def test_a_sheet_shows_every_panel_in_its_row_and_column() -> None:
    six = panels(6)
    picture = sheet([six[:3], six[3:]], "heading")
    boxes = places(picture)
    assert len(boxes) == 6
    lefts, tops = [box[0] for box in boxes], [box[1] for box in boxes]
    assert lefts[:3] == sorted(lefts[:3]) == lefts[3:]  # the columns stand below each other
    assert tops[:3] == [tops[0]] * 3 and tops[3:] == [tops[3]] * 3
    assert tops[3] >= boxes[0][3]
    assert all(boxes[i][2] <= boxes[i + 1][0] for i in (0, 1, 3, 4))


def test_a_sheet_grows_with_its_rows_and_columns() -> None:
    one, wide, tall = (sheet(rows, "h") for rows in ([panels(1)], [panels(3)], [panels(1)] * 3))
    assert one.mode == "RGB"
    assert wide.width > 2.5 * one.width and wide.height == one.height
    assert tall.width == one.width and tall.height > 2 * one.height


def test_rows_of_different_length_leave_white_gaps() -> None:
    four = panels(4)
    boxes = places(sheet([four[:3], four[3:]], "heading"))
    assert len(boxes) == 4
    assert boxes[3][0] == boxes[0][0]


@pytest.mark.parametrize("size", [(120, 60), (40, 80)])
def test_panels_keep_their_proportions(size: tuple[int, int]) -> None:
    picture = sheet([panels(2, size)], "heading")
    for left, top, right, bottom in places(picture):
        assert (right - left) / (bottom - top) == pytest.approx(size[0] / size[1], rel=0.05)


def test_dollars_and_underscores_in_names_are_no_formulas() -> None:
    image = Image.new("RGB", (20, 20))
    texts = [
        numbers(sheet([[Panel(title, image)]], heading))
        for title, heading in (("$x_$ {", "a"), ("$x$", "a"), ("a", "$_^$"), ("x", "a"))
    ]
    assert not np.array_equal(texts[1], texts[3])  # as a formula `$x$` would be an x
