"""Pictures: the right images, large enough, marked right or wrong. What they look like was judged by eye."""

import numpy as np
import pytest

from app.visualizer import draw


@pytest.mark.parametrize(("size", "count"), [(10, 4), (16, 16), (3, 16), (10_010, 16), (1, 1)])
def test_samples_are_spread_evenly_and_always_the_same(size: int, count: int) -> None:
    indices = draw.sample_indices(size, count)
    assert indices == draw.sample_indices(size, count)
    assert len(set(indices)) == len(indices) == min(size, count)
    assert indices[0] >= 0
    assert indices[-1] < size
    steps = np.diff([-indices[0] - 1, *indices, 2 * size - 1 - indices[-1]])
    assert steps.max() - steps.min() <= 2


@pytest.mark.parametrize("side", [1, 8, 28, 32, 95])
def test_a_small_image_is_enlarged_with_square_pixels(side: int) -> None:
    image = np.arange(side * side, dtype=np.uint8).reshape(1, side, side)
    picture = draw.enlarge(image, None)
    factor = picture.shape[0] // side
    assert min(picture.shape[:2]) >= 96
    assert np.array_equal(picture, image[0].repeat(factor, 0).repeat(factor, 1)[..., None].repeat(3, 2))


def test_the_factor_wins_over_the_least_size() -> None:
    image = np.zeros((3, 28, 30), dtype=np.uint8)
    assert draw.enlarge(image, 2.0).shape == (56, 60, 3)
    assert draw.enlarge(image, 1.5).shape == (42, 45, 3)
    assert draw.enlarge(image, 0.01).shape == (1, 1, 3)
    assert draw.enlarge(np.zeros((3, 224, 300), dtype=np.uint8), None).shape == (224, 300, 3)


def test_shrinking_averages_instead_of_dropping_pixels() -> None:
    stripes = np.tile(np.array([0, 255], dtype=np.uint8), (3, 200, 100))
    assert set(np.unique(draw.enlarge(stripes, 0.5))) <= {127, 128}


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 12])
def test_any_number_of_channels_can_be_shown(channels: int) -> None:
    image = np.stack([np.full((96, 96), 10 * index, dtype=np.uint8) for index in range(channels)])
    shown = draw.enlarge(image, 1)[0, 0].tolist()
    assert shown == ([0, 10, 20] if channels >= 3 else [0, 0, 0])


def has(picture: draw.Picture, colour: tuple[int, int, int]) -> bool:
    return bool((picture == np.array(colour)).all(axis=-1).any())


def test_right_and_wrong_differ_in_colour_and_mark() -> None:
    image = np.zeros((1, 8, 8), dtype=np.uint8)
    right = draw.tile(image, "cat", "97 %", "cat", True)
    wrong = draw.tile(image, "cat", "97 %", "cat", False)
    assert has(right, draw.RIGHT)
    assert not has(right, draw.WRONG)
    assert has(wrong, draw.WRONG)
    assert not has(wrong, draw.RIGHT)
    shapes = [(picture != np.array(draw.PAPER)).any(axis=-1) for picture in (right, wrong)]
    assert not np.array_equal(*shapes)


def test_each_text_changes_the_tile_but_not_its_size() -> None:
    image = np.full((1, 8, 8), 9, dtype=np.uint8)
    plain = draw.tile(image, "cat", "97 %", "dog", False)
    for other in (
        draw.tile(image, "cow", "97 %", "dog", False),
        draw.tile(image, "cat", "96 %", "dog", False),
        draw.tile(image, "cat", "97 %", "owl", False),
    ):
        assert plain.shape == other.shape
        assert not np.array_equal(plain, other)
    assert draw.tile(image, "a very long name indeed, 花" * 9, "97 %", "x" * 99, None).shape == plain.shape


def test_a_long_name_leaves_room_for_the_score() -> None:
    image = np.full((1, 8, 8), 9, dtype=np.uint8)
    tile = draw.tile(image, "W" * 60, "97 %", "x", True)
    blank = draw.tile(image, "", "97 %", "x", True)
    score = slice(-34, None)
    assert np.array_equal(tile[:, score], blank[:, score])


@pytest.mark.parametrize("count", [1, 2, 7, 16, 256])
def test_a_grid_holds_every_tile(count: int) -> None:
    tiles = [np.full((20, 30, 3), index % 200, dtype=np.uint8) for index in range(count)]
    sheet = draw.grid(tiles, "title")
    for index in range(min(count, 200)):
        assert has(sheet, (index, index, index))


@pytest.mark.skipif(len(draw._fonts(14)) == 1, reason="no font but Pillow's own")
@pytest.mark.parametrize(("one", "two"), [("猫", "狗"), ("кот", "пёс"), ("vögel", "vagel")])
def test_names_in_any_script_are_told_apart(one: str, two: str) -> None:
    image = np.zeros((1, 8, 8), dtype=np.uint8)
    drawn = [draw.tile(image, name, "97 %", "x", True) for name in (one, two, "?" * len(one))]
    if "猫" in one and not any(draw._drawn(font, "猫") for font in draw._fonts(14)):
        pytest.skip("no font with Chinese letters")
    assert not np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2]), "no question marks"


def test_a_letter_that_no_font_has_is_a_question_mark() -> None:
    image = np.zeros((1, 8, 8), dtype=np.uint8)
    shown, asked = (draw.tile(image, name, "97 %", "x", True) for name in ("a\U000f0000b", "a?b"))
    assert np.array_equal(shown, asked)


def test_a_long_title_is_shown_whole() -> None:
    one = np.zeros((30, 40, 3), dtype=np.uint8)
    title = "val worst, epoch 4, step 92 (greatest loss first)"
    widths = [draw.grid([one], title[:length]).shape[1] for length in (20, 40, len(title))]
    assert widths == sorted(set(widths)), "it grows with the title"
    sheet = draw.grid([one], title)
    inked = np.nonzero((sheet[:30] < 128).any(axis=(0, 2)))[0]
    assert widths[1] < inked.max() < widths[2] - 1, "to the last letter"
