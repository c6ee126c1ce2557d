"""Pictures of predictions that a person can read, even of 8 by 8 pixels; without a display or a font file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL import ImageDraw, ImageFont

Picture = npt.NDArray[np.uint8]

LEAST_SIDE = 112
"""Pixels to which a smaller image is enlarged, by a whole factor, so that its pixels stay squares."""
LEAST_WIDTH = 132
"""Pixels that the text below an image gets."""
TEXT_SIZE, LINE_HEIGHT, MARGIN = 14, 19, 6
PAPER, INK, FAINT = (255, 255, 255), (31, 35, 40), (101, 109, 118)
RIGHT, WRONG, NEUTRAL = (17, 122, 101), (200, 60, 30), (101, 109, 118)
"""Told apart without colour too: a right answer has a tick, a wrong one a cross."""
BLUE = np.array((26, 95, 180), dtype=np.float64)


def sample_indices(size: int, count: int) -> list[int]:
    """`count` positions spread evenly over 0 … size - 1 (all of them when there are fewer), always the same."""
    count = min(size, count)
    return [(2 * index + 1) * size // (2 * count) for index in range(count)]


def enlarge(image: Picture, factor: float | None) -> Picture:
    """(channels, height, width) to (height, width, 3), scaled by `factor`; None: to at least `LEAST_SIDE` pixels.

    One channel is shown in grey, two or more than three by the first or the first three.
    """
    from PIL import Image

    channels = image if image.shape[0] == 3 else image[:3] if image.shape[0] > 3 else np.repeat(image[:1], 3, axis=0)
    picture: Picture = np.ascontiguousarray(channels.transpose(1, 2, 0))
    height, width = picture.shape[:2]
    if factor is None:
        factor = max(1, math.ceil(LEAST_SIDE / min(height, width)))
    if factor == 1:
        return picture
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    method = Image.Resampling.NEAREST if factor > 1 else Image.Resampling.BOX
    return np.asarray(Image.fromarray(picture).resize(size, method))


def tile(
    image: Picture, answer: str, score: str, truth: str, right: bool | None, factor: float | None = None
) -> Picture:
    """One image above its text, (height, width, 3).

    Args:
        image: (channels, height, width), uint8.
        answer: the prediction, in the colour of `right` and with its mark; shortened where it does not fit.
        score: right of it, never shortened.
        truth: the line below.
        right: None for neither: grey, no mark.
        factor: see `enlarge`.
    """
    from PIL import Image, ImageDraw

    picture = enlarge(image, factor)
    colour = NEUTRAL if right is None else RIGHT if right else WRONG
    height, width = picture.shape[:2]
    full_width = max(width, LEAST_WIDTH) + 2 * MARGIN
    top = height + 2 * MARGIN
    canvas = Image.new("RGB", (full_width, top + 2 * LINE_HEIGHT + MARGIN), PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((MARGIN - 3, MARGIN - 3, MARGIN + width + 2, MARGIN + height + 2), fill=colour)
    canvas.paste(Image.fromarray(picture), (MARGIN, MARGIN))
    font = _font(TEXT_SIZE)
    begin, end = MARGIN, full_width - MARGIN
    if right is not None:
        _mark(draw, begin, top + 3, right, colour)
        begin += 16
    room = end - begin - font.getlength(score) - 8
    draw.text((begin, top), _fitted(answer, room), fill=colour, font=font)
    draw.text((end, top), score, fill=colour, font=font, anchor="ra")
    draw.text((MARGIN, top + LINE_HEIGHT), _fitted(f"truth {truth}", end - MARGIN), fill=FAINT, font=font)
    return np.asarray(canvas)


def grid(tiles: Sequence[Picture], title: str = "") -> Picture:
    """All tiles on one sheet, about twice as wide as high, below `title`."""
    from PIL import Image, ImageDraw

    number = len(tiles)
    height, width = max(one.shape[0] for one in tiles), max(one.shape[1] for one in tiles)
    wished = max(1, round(math.sqrt(2 * number * height / width)))
    near = range(max(1, wished - 2), min(number, wished + 2) + 1)
    columns = min(near, key=lambda some: (-number % some, abs(some - wished)), default=number)
    top = 36 if title else MARGIN
    full_width = max(columns * width + 2 * MARGIN, math.ceil(_font(17).getlength(title)) + 4 * MARGIN)
    canvas = Image.new("RGB", (full_width, top + math.ceil(number / columns) * height + MARGIN), PAPER)
    ImageDraw.Draw(canvas).text((2 * MARGIN, 9), title, fill=INK, font=_font(17))
    for index, one in enumerate(tiles):
        row, column = divmod(index, columns)
        canvas.paste(Image.fromarray(one), (MARGIN + column * width, top + row * height))
    return np.asarray(canvas)


def confusion(counts: npt.NDArray[np.int64], classes: Sequence[str], title: str = "") -> Picture:
    """The confusion matrix, truth in rows: each cell tinted by its share of the row, with its count where it fits.

    Args:
        counts: (classes, classes).
    """
    from PIL import Image, ImageDraw

    number = len(classes)
    cell = 46 if number <= 20 else max(2, 920 // number)
    named = cell >= 16
    size = min(TEXT_SIZE, cell - 2) if named else TEXT_SIZE
    names = [_fitted(name, 150, size) for name in classes] if named else []
    label = max((math.ceil(_font(size).getlength(name)) for name in names), default=0) + 2 * MARGIN
    left, top = label + 26, 40
    side = number * cell
    canvas = Image.new("RGB", (left + side + 2 * MARGIN, top + side + label + 30), PAPER)
    draw = ImageDraw.Draw(canvas)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    tints = (255 - (255 - BLUE) * np.sqrt(shares)[..., None]).astype(np.uint8)
    canvas.paste(Image.fromarray(tints).resize((side, side), Image.Resampling.NEAREST), (left, top))
    draw.text((left, 11), _fitted(title or "Confusion matrix", side, 17), fill=INK, font=_font(17))
    if number <= 20:
        _counts(draw, counts, shares, left, top, cell)
    for index, name in enumerate(names):
        middle = index * cell + cell // 2
        draw.text((left - MARGIN, top + middle), name, fill=INK, font=_font(size), anchor="rm")
        _vertical(canvas, name, size, left + middle, top + side + MARGIN, from_top=True)
    draw.rectangle((left, top, left + side, top + side), outline=FAINT)
    draw.text((left + side // 2, top + side + label + 12), "prediction", fill=FAINT, font=_font(TEXT_SIZE), anchor="mm")
    _vertical(canvas, "truth", TEXT_SIZE, 12, top + side // 2, from_top=False)
    return np.asarray(canvas)


def _counts(draw: ImageDraw.ImageDraw, counts: Any, shares: Any, left: int, top: int, cell: int) -> None:
    """Writes each count into its cell; zeros are left out, so that the errors stand out."""
    for row, column in zip(*np.nonzero(counts), strict=True):
        text = str(counts[row, column])
        ink = PAPER if shares[row, column] > 0.3 else INK
        place = (left + column * cell + cell // 2, top + row * cell + cell // 2)
        draw.text(place, text, fill=ink, font=_font(TEXT_SIZE if len(text) < 5 else 11), anchor="mm")


def _vertical(canvas: Any, text: str, size: int, centre: int, y: int, *, from_top: bool) -> None:
    """`text` turned to read upwards, its end at `y`, or its middle there."""
    from PIL import Image, ImageDraw

    length = math.ceil(_font(size).getlength(text)) + 2
    strip = Image.new("RGB", (length, size + 6), PAPER)
    ImageDraw.Draw(strip).text(
        (1, (size + 6) // 2), text, fill=INK if from_top else FAINT, font=_font(size), anchor="lm"
    )
    turned = strip.transpose(Image.Transpose.ROTATE_90)
    canvas.paste(turned, (centre - turned.width // 2, y if from_top else y - length // 2))


def _mark(draw: ImageDraw.ImageDraw, x: int, y: int, right: bool, colour: tuple[int, int, int]) -> None:
    """A tick or a cross of 11 pixels."""
    if right:
        draw.line([(x, y + 6), (x + 4, y + 10), (x + 11, y + 1)], fill=colour, width=2)
    else:
        draw.line([(x + 1, y + 1), (x + 10, y + 10)], fill=colour, width=2)
        draw.line([(x + 10, y + 1), (x + 1, y + 10)], fill=colour, width=2)


def _fitted(text: str, width: float, size: int = TEXT_SIZE) -> str:
    """`text`, cut with an ellipsis to `width` pixels; a character that the font lacks becomes a question mark."""
    text = text.encode("latin-1", "replace").decode("latin-1")
    font = _font(size)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip() + "..."


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own scalable font."""
    from PIL import ImageFont

    return ImageFont.load_default(size)
