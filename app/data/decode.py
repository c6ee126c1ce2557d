"""From the bytes of an image file to uint8 RGB pixels, decoding no more of them than the wanted size needs."""

import contextlib
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import simplejpeg
import torch
from PIL import Image, ImageOps
from torch.nn.functional import interpolate

FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
ORIENTATION = 0x0112

Box = tuple[float, float, float, float]
"""Left, top, width, height of a part of an image, in its pixels."""


class UnreadableError(Exception):
    """Why some bytes are not an image that can be used."""


def decode(data: bytes, side: int | None, box_of: Callable[[int, int], Box], max_pixels: int) -> torch.Tensor:
    """The part `box_of(width, height)` of an image, resized (bilinear, antialiased) to `side` pixels square.

    Grey becomes RGB, CMYK is converted, transparent pixels lie on white, 16 bits are scaled to 8, and the EXIF
    orientation is applied. A JPEG is decoded at the largest of 1/2, 1/4, 1/8 that still has `side` pixels in the box,
    in the decoder's own inverse transform.

    Returns:
        (3, side, side) uint8, with `side=None` (3, height, width) of the part itself.

    Raises:
        UnreadableError: whatever is wrong with it.
    """
    try:
        with open_image(data, max_pixels) as image:
            return _resized(image, data, side, box_of)
    except UnreadableError:
        raise
    except Exception as error:  # a damaged file makes Pillow raise nearly anything
        raise UnreadableError(_reason(data, error)) from error


def open_image(data: bytes, max_pixels: int) -> Image.Image:
    """The image, with its header read and its pixels not."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # ours is checked below, with a message that helps
    try:
        image = Image.open(BytesIO(data), formats=FORMATS)
    except Exception as error:
        raise UnreadableError(_reason(data, error)) from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    width, height = image.size
    if width * height > max_pixels:
        raise UnreadableError(
            f"{width}x{height} is {width * height:,} pixels, more than data.max_pixels={max_pixels}; "
            "raise that if the image is meant"
        )
    return image


def centre_box(width: int, height: int, side: int | None, resize: int | None) -> Box:
    """What evaluation sees: the shorter side resized to `resize` (or side / 0.875), then the centre `side` square.

    An image that has the wanted size already is taken whole, and so is every image without `side`.
    """
    if side is None or (resize is None and width == height == side):
        return 0, 0, width, height
    part = min(width, height) * side / max(side, resize or round(side / 0.875))
    return (width - part) / 2, (height - part) / 2, part, part


def _resized(image: Image.Image, data: bytes, side: int | None, box_of: Callable[[int, int], Box]) -> torch.Tensor:
    turned = image.getexif().get(ORIENTATION, 1) != 1 if "exif" in image.info else False
    if turned or image.mode not in ("RGB", "L"):
        image = _to_rgb(ImageOps.exif_transpose(image) if turned else image)
    width, height = image.size
    left, top, part_width, part_height = box_of(width, height)
    reduction = 1
    if side is not None:
        reduction = max((r for r in (1, 2, 4, 8) if min(part_width, part_height) >= r * side), default=1)
    decoded = _decoded(image, data, reduction)
    x, y = decoded.shape[1] / width, decoded.shape[0] / height
    first_row, first_column = round(top * y), round(left * x)
    rows = slice(first_row, max(round((top + part_height) * y), first_row + 1))
    columns = slice(first_column, max(round((left + part_width) * x), first_column + 1))
    pixels = torch.from_numpy(decoded[rows, columns]).permute(2, 0, 1)
    if side is None or pixels.shape[1:] == (side, side):
        return pixels
    return interpolate(pixels[None], (side, side), mode="bilinear", antialias=True)[0]


def _decoded(image: Image.Image, data: bytes, reduction: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(height, width, 3) uint8 of the whole image; of a JPEG at 1/`reduction` of its size."""
    if image.format in ("JPEG", "MPO"):  # as it was opened: not one that was turned or converted
        size = {} if reduction == 1 else {"min_height": -(-image.height // reduction), "min_factor": reduction}
        # The same pixels as Pillow's, which is twice as slow; what it cannot read, or not without a warning, Pillow
        # may, and says what is wrong with the rest.
        with contextlib.suppress(ValueError):
            pixels: np.ndarray[Any, np.dtype[np.uint8]] = simplejpeg.decode_jpeg(data, **size)
            return pixels
        image.draft(image.mode, (image.width // reduction, image.height // reduction))
    return np.array(_to_rgb(image))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        wide: Any = np.asarray(image).astype(np.int64)
        return Image.fromarray(((wide * 255 + 32767) // 65535).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image).convert("RGB")
    return image.convert("RGB")


def _reason(data: bytes, error: Exception) -> str:
    start = data[:64].lstrip()
    if not data:
        return "the file is empty"
    if start[:5].lower() in (b"<html", b"<!doc"):
        return f"it starts with {start[:5].decode()!r}: a web page, not an image"
    if start.startswith(b"version https://git-lfs"):
        return "it is a git-lfs pointer, not the image: run `git lfs pull`"
    text = str(error) or type(error).__name__
    return f"not a {', '.join(FORMATS)} image; it starts with {data[:8]!r}" if "cannot identify" in text else text
