"""An image file as bytes of red, green and blue, whatever it holds them as; what has no one meaning is refused."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from bench.contracts.errors import InputError

_GREY = ("1", "L", "LA")
#: 16 bits of grey, by the version of Pillow ("I" before 11).
_DEEP_GREY = ("I", "I;16", "I;16B", "I;16L")
_TAKEN = (*_GREY, *_DEEP_GREY, "P", "PA", "RGB", "RGBA", "RGBX", "CMYK")
_OPAQUE = 255


def decode(path: Path, content: bytes | None = None) -> tuple[NDArray[np.uint8], bool]:
    """An image, uint8 ``(H, W, 3)``, and whether it is stored as grey.

    Of 16 bits the upper 8 count. Palettes and CMYK become RGB, images are turned as their EXIF orientation says, and an
    alpha channel that is opaque everywhere is dropped.

    Args:
        path: of the file; where its ``content`` is given, only its name in messages.

    Raises:
        InputError: for a file that cannot be read, transparent pixels (their colour depends on a background that the
            file does not name), and other modes.
    """
    try:
        with Image.open(path if content is None else BytesIO(content)) as image:
            return _decode(path, image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"image {path}: cannot be read: {' '.join(str(error).split())}") from None


def _decode(path: Path, image: Image.Image) -> tuple[NDArray[np.uint8], bool]:
    mode = image.mode
    if mode not in _TAKEN:
        raise InputError(f"image {path}: has the mode {mode}; grey, palette, RGB and CMYK are taken")
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if mode in _DEEP_GREY:
        deep = np.asarray(image).astype(np.int64)
        if deep.min() < 0 or deep.max() > 0xFFFF:
            raise InputError(f"image {path}: has grey values of more than 16 bits")
        return np.repeat((deep >> 8).astype(np.uint8)[..., None], 3, axis=2), True
    if image.has_transparency_data:
        alpha = image.convert("RGBA").getchannel("A")
        if alpha.getextrema()[0] != _OPAQUE:
            raise InputError(f"image {path}: has transparent pixels; put it on a background first")
    # Without what marks a colour as transparent, Pillow's conversion would warn of it.
    image.info.pop("transparency", None)
    return np.asarray(image if mode == "RGB" else image.convert("RGB")), mode in _GREY
