"""Image files of all modes."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image

from bench.contracts.errors import InputError
from bench.data.load import load_data
from bench.data.pictures import decode

GREY16 = np.array([[0, 255, 256], [0x7FFF, 0x8000, 0xFFFF]], np.uint16)


def _png16(path: Path, pixels: NDArray[np.uint16]) -> Path:
    """A PNG of 16 bits per channel, grey ``(H, W)`` or RGB ``(H, W, 3)``, which Pillow writes of grey alone."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width = pixels.shape[:2]
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, 0 if pixels.ndim == 2 else 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    return path


def test_16_bits_of_grey_are_scaled(tmp_path: Path) -> None:
    rgb, grey = decode(_png16(tmp_path / "deep.png", GREY16))
    assert grey
    assert rgb.shape == (2, 3, 3)
    assert rgb[..., 0].tolist() == [[0, 0, 1], [0x7F, 0x80, 0xFF]]
    assert (rgb == rgb[..., :1]).all()
    assert np.abs(rgb[..., 0] / 255 - GREY16 / 65535).max() < 1 / 255


def test_16_bits_of_colour_are_scaled_as_those_of_grey(tmp_path: Path) -> None:
    pixels = np.stack([GREY16, GREY16[::-1], GREY16[:, ::-1]], axis=-1)
    rgb, grey = decode(_png16(tmp_path / "deep.png", pixels))
    assert not grey
    assert np.array_equal(rgb, (pixels >> 8).astype(np.uint8))


def test_a_folder_of_16_bit_images_is_not_white(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for shade, name in enumerate(("dark", "light")):
            (tmp_path / "deep" / part / name).mkdir(parents=True)
            for i in range(2):
                _png16(tmp_path / "deep" / part / name / f"{i}.png", np.full((4, 4), 0x4000 * (1 + shade), np.uint16))
    data = load_data(f"folder:{tmp_path / 'deep'}")
    assert data.info.shape == (1, 4, 4)
    assert sorted({round(float(v), 4) for v in data.test.x.flatten()}) == [round(0x40 / 255, 4), round(0x80 / 255, 4)]


def test_palettes_bits_and_cmyk(tmp_path: Path) -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 0])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "palette.png")
    rgb, grey = decode(tmp_path / "palette.png")
    assert (rgb.tolist(), grey) == ([[[10, 20, 30], [200, 100, 0]]], False)
    bits = Image.new("1", (2, 1))
    bits.putpixel((1, 0), 1)
    bits.save(tmp_path / "bits.png")
    rgb, grey = decode(tmp_path / "bits.png")
    assert (rgb[..., 0].tolist(), grey) == ([[0, 255]], True)
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "print.jpg", quality=95)
    rgb, grey = decode(tmp_path / "print.jpg")
    assert not grey
    assert np.abs(rgb.astype(int) - [255, 0, 0]).max() <= 8


@pytest.mark.parametrize(("mode", "colour"), [("RGBA", (9, 8, 7)), ("LA", (9,)), ("P", None), ("RGB", None)])
def test_transparent_pixels_are_refused_and_opaque_ones_taken(
    tmp_path: Path, mode: str, colour: tuple[int, ...] | None
) -> None:
    path = tmp_path / "glass.png"
    if colour is not None:
        Image.new(mode, (2, 2), (*colour, 255)).save(path)
        assert decode(path)[0][0, 0].tolist() == list(colour if len(colour) == 3 else colour * 3)
        Image.new(mode, (2, 2), (*colour, 254)).save(path)
    else:
        # A colour that is marked as transparent.
        Image.new(mode, (2, 2)).save(path, transparency=0 if mode == "P" else (0, 0, 0))
    with pytest.raises(InputError, match=r"glass\.png: has transparent pixels; put it on a background first"):
        decode(path)


def test_images_are_turned_as_their_exif_says(tmp_path: Path) -> None:
    image = Image.new("RGB", (16, 8))
    image.paste((255, 255, 255), (0, 0, 8, 8))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be shown turned by a quarter, clockwise
    image.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    rgb, _ = decode(tmp_path / "turned.jpg")
    assert rgb.shape == (16, 8, 3)
    assert rgb[:7].min() > 200 and rgb[9:].max() < 50


def test_what_has_no_meaning_as_an_image_is_refused(tmp_path: Path) -> None:
    Image.new("F", (2, 2)).save(tmp_path / "floats.tiff")
    (tmp_path / "floats.tiff").rename(tmp_path / "floats.png")
    with pytest.raises(InputError, match=r"floats\.png: has the mode F; grey, palette, RGB and CMYK are taken"):
        decode(tmp_path / "floats.png")
    whole = _png16(tmp_path / "cut.png", np.arange(4096, dtype=np.uint16).reshape(64, 64)).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"cut\.png: cannot be read") as caught:
        decode(tmp_path / "cut.png")
    assert "\n" not in str(caught.value)
