"""Pictures of predictions that a person can read, even of 8 by 8 pixels; without a display."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL import ImageDraw, ImageFont

    Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

Picture = npt.NDArray[np.uint8]

MIN_SIDE = 112
"""Pixels to which a smaller image is enlarged, by a whole factor, so that its pixels stay squares."""
MIN_TEXT_WIDTH = 132
"""Pixels that the text below an image gets."""
TEXT_SIZE, TITLE_SIZE, LINE_HEIGHT, BASELINE, MARGIN = 14, 17, 19, 14, 6
SYSTEM_FONTS = (
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial Unicode.ttf", "arial.ttf"),
    *("NotoSansCJK-Regular.ttc", "wqy-microhei.ttc", "DroidSansFallbackFull.ttf", "msyh.ttc", "PingFang.ttc"),
)
"""With Cyrillic, Greek, …; and with Chinese, Japanese and Korean: on Linux, Windows and macOS."""
PAPER, INK, FAINT = (255, 255, 255), (31, 35, 40), (101, 109, 118)
RIGHT, WRONG, NEUTRAL = (17, 122, 101), (200, 60, 30), (101, 109, 118)
"""Told apart without colour too: a right answer has a tick, a wrong one a cross."""


def sample_indices(size: int, count: int) -> list[int]:
    """`count` positions spread evenly over 0 … size - 1 (all of them when there are fewer), always the same."""
    count = min(size, count)
    return [(2 * index + 1) * size // (2 * count) for index in range(count)]


def enlarge(image: Picture, factor: float | None) -> Picture:
    """(channels, height, width) to (height, width, 3), scaled by `factor`; None: to at least `MIN_SIDE` pixels.

    One channel is shown in grey, two or more than three by the first or the first three.
    """
    from PIL import Image

    channels = image if image.shape[0] == 3 else image[:3] if image.shape[0] > 3 else np.repeat(image[:1], 3, axis=0)
    picture: Picture = np.ascontiguousarray(channels.transpose(1, 2, 0))
    height, width = picture.shape[:2]
    if factor is None:
        factor = max(1, math.ceil(MIN_SIDE / min(height, width)))
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
    full_width = max(width, MIN_TEXT_WIDTH) + 2 * MARGIN
    top = height + 2 * MARGIN
    canvas = Image.new("RGB", (full_width, top + 2 * LINE_HEIGHT + MARGIN), PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((MARGIN - 3, MARGIN - 3, MARGIN + width + 2, MARGIN + height + 2), fill=colour)
    canvas.paste(Image.fromarray(picture), (MARGIN, MARGIN))
    font = _fonts(TEXT_SIZE)[0]
    begin, end = MARGIN, full_width - MARGIN
    if right is not None:
        _mark(draw, begin, top + 3, right, colour)
        begin += 16
    _write(draw, begin, top, answer, end - begin - font.getlength(score) - 8, colour)
    draw.text((end, top + BASELINE), score, fill=colour, font=font, anchor="rs")
    _write(draw, MARGIN, top + LINE_HEIGHT, f"truth {truth}", end - MARGIN, FAINT)
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
    title, font = _fitted(title, math.inf, TITLE_SIZE)
    full_width = max(columns * width + 2 * MARGIN, math.ceil(font.getlength(title)) + 4 * MARGIN)
    canvas = Image.new("RGB", (full_width, top + math.ceil(number / columns) * height + MARGIN), PAPER)
    ImageDraw.Draw(canvas).text((2 * MARGIN, 9), title, fill=INK, font=font)
    for index, one in enumerate(tiles):
        row, column = divmod(index, columns)
        canvas.paste(Image.fromarray(one), (MARGIN + column * width, top + row * height))
    return np.asarray(canvas)


def _write(draw: ImageDraw.ImageDraw, x: int, y: int, text: str, width: float, colour: tuple[int, int, int]) -> None:
    """One line of text, cut to `width`; the line stands at the same height in every font."""
    text, font = _fitted(text, width)
    draw.text((x, y + BASELINE), text, fill=colour, font=font, anchor="ls")


def _mark(draw: ImageDraw.ImageDraw, x: int, y: int, right: bool, colour: tuple[int, int, int]) -> None:
    """A tick or a cross of 11 pixels."""
    if right:
        draw.line([(x, y + 6), (x + 4, y + 10), (x + 11, y + 1)], fill=colour, width=2)
    else:
        draw.line([(x + 1, y + 1), (x + 10, y + 10)], fill=colour, width=2)
        draw.line([(x + 10, y + 1), (x + 1, y + 10)], fill=colour, width=2)


def _fitted(text: str, width: float, size: int = TEXT_SIZE) -> tuple[str, Font]:
    """Cut `text` with an ellipsis to `width` pixels; return it and its font. A letter that no font has becomes `?`."""
    font, present = _font_of(text, size)
    text = "".join(letter if letter in present else "?" for letter in text)
    if font.getlength(text) <= width:
        return text, font
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip() + "...", font


def _font_of(text: str, size: int) -> tuple[Font, set[str]]:
    """The first font with all letters of `text`, else the one with most of them; and the letters that it has."""
    letters = set(text)
    found = [(font, {letter for letter in letters if letter in _drawn(font, letter)}) for font in _fonts(size)]
    return max(found, key=lambda entry: len(entry[1]))  # of equal ones the first


@cache
def _drawn(font: Font, letter: str) -> str:
    """`letter` if `font` has a shape for it, else nothing: it would draw the box that stands for a missing one."""
    if letter.isascii():
        return letter
    missing = font.getmask("\U0010ffff")
    shape = font.getmask(letter)
    return "" if (shape.size, bytes(shape)) == (missing.size, bytes(missing)) else letter


@cache
def _fonts(size: int) -> list[Font]:
    """Pillow's own font, which has the letters of English, and those of the system that have more."""
    from PIL import ImageFont

    fonts: list[Font] = [ImageFont.load_default(size)]
    for name in SYSTEM_FONTS:
        with suppress(OSError):  # Pillow looks for the name where the system keeps its fonts
            fonts.append(ImageFont.truetype(name, size))
    return fonts
