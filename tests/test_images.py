"""The one reader of pictures: what is turned, scaled, flattened; what is refused, always in one line; nothing else."""

from __future__ import annotations

import io
import os
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from mindpangu.errors import UserError
from mindpangu.images import MAX_PIXELS, on_white, opened, parse_size, read_picture
from mindpangu.infer.init_image import InitImage, same_shape

pytestmark = pytest.mark.usefixtures("little_memory")


def content(picture: Image.Image, form: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def two_colours() -> Image.Image:
    """Red above blue, 8 pixels across and 16 down."""
    picture = Image.new("RGB", (8, 16), "red")
    picture.paste("blue", (0, 8, 8, 16))
    return picture


def test_a_turned_photo_stands_upright():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # shown a quarter turned to the right
    seen = read_picture(content(two_colours().rotate(90, expand=True), "JPEG", exif=exif, quality=100))
    assert seen.size == (8, 16)
    assert np.asarray(seen)[2, 4, 0] > 200 and np.asarray(seen)[13, 4, 2] > 200


def test_sixteen_bits_and_floats_are_scaled():
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    seen = np.asarray(read_picture(content(Image.fromarray(ramp))))
    np.testing.assert_array_equal(seen[..., 0], np.rint(ramp / 257).astype(np.uint8))
    assert (seen[..., 3] == 255).all()
    seen = np.asarray(read_picture(content(Image.fromarray(np.float32(ramp / 65535)), "TIFF")))
    np.testing.assert_array_equal(seen[..., 0], np.rint(ramp / 257).astype(np.uint8))
    for wrong in (np.float32(ramp), np.full((4, 4), np.nan, np.float32), -np.ones((4, 4), np.float32)):
        with pytest.raises(UserError, match=r"of mode F 0 to 1 is read"):
            read_picture(content(Image.fromarray(wrong), "TIFF"))


@pytest.mark.parametrize(
    ("form", "mode"),
    [("PNG", "P"), ("PNG", "1"), ("PNG", "LA"), ("PNG", "RGBA"), ("GIF", "P"), ("BMP", "RGB"), ("TIFF", "CMYK"),
     ("JPEG", "CMYK"), ("JPEG", "L"), ("WEBP", "RGBA"), ("AVIF", "RGB")],
)  # fmt: skip
def test_every_kind_of_picture_is_read(form, mode):
    if form not in Image.OPEN:
        pytest.skip(f"this Pillow has no {form}")
    seen = read_picture(content(two_colours().convert(mode), form))
    assert (seen.mode, seen.size) == ("RGBA", (8, 16))
    assert np.asarray(on_white(seen)).std() > 10


def test_what_is_transparent_lies_on_white_and_in_a_mask_on_black(tmp_path):
    clear = Image.new("RGBA", (8, 8), (255, 255, 255, 0))
    clear.paste((255, 0, 0, 255), (0, 0, 4, 8))
    assert np.asarray(on_white(clear))[0, 6].tolist() == [255, 255, 255]
    mask = Image.new("RGBA", (8, 8), (255, 255, 255, 0))
    mask.paste((255, 255, 255, 255), (0, 0, 4, 8))
    where = InitImage.open(Image.new("RGB", (8, 8)), mask, (8, 8)).mask
    assert where[:, :4].min() == 1 and where[:, 4:].max() == 0
    nearly = Image.fromarray(np.full((8, 8), 9, np.uint8))
    with pytest.raises(UserError, match="black throughout"):
        InitImage.open(Image.new("RGB", (8, 8)), nearly, (8, 8))


def test_shapes_are_equal_up_to_a_pixel():
    assert (
        same_shape((500, 333), (1000, 667)) and same_shape((1000, 667), (500, 333)) and same_shape((8, 8), (512, 512))
    )
    assert not same_shape((500, 340), (1000, 667)) and not same_shape((8, 16), (16, 8))


def test_an_exif_that_cannot_be_read_is_no_reason_to_refuse(tmp_path):
    whole = content(two_colours())
    chunk = b"eXIf" + b"nonsense"
    broken = whole[:33] + struct.pack(">I", 8) + chunk + struct.pack(">I", zlib.crc32(chunk)) + whole[33:]
    assert read_picture(broken).size == (8, 16)


def test_a_bomb_is_refused_before_it_is_decoded():
    header = struct.pack(">IIBBBBB", 1, 3 * MAX_PIXELS, 1, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0\0")), (b"IEND", b""))
    )
    with pytest.raises(UserError, match="pixels"):
        read_picture(bomb, "bomb.png")


def test_no_program_is_started_for_a_picture(tmp_path, monkeypatch):
    """PostScript would start Ghostscript; whatever it is called, it is no picture here."""
    (tmp_path / "gs").write_text("#!/bin/sh\ntouch $(dirname $0)/started\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    path = tmp_path / "picture.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(UserError, match=r"picture\.png: not a readable picture"):
        read_picture(path)
    assert not (tmp_path / "started").exists()


WHOLE = [
    content(two_colours().convert(mode), form, **options)
    for form, mode, options in (
        ("PNG", "RGBA", {}), ("PNG", "P", {}), ("JPEG", "RGB", {}), ("GIF", "P", {}), ("BMP", "RGB", {}),
        ("WEBP", "RGB", {"lossless": True}), ("TIFF", "RGB", {"compression": "tiff_lzw"}), ("TIFF", "L", {}),
    )
]  # fmt: skip


@settings(max_examples=2000, deadline=None)
@given(st.data())
def test_damaged_files_are_read_or_refused_in_one_line(data):
    """Cut, with flipped bytes, or of chance alone; `opened` alone, as the readers of metadata use it, too."""
    whole = bytearray(data.draw(st.sampled_from(WHOLE)))
    for place, value in data.draw(st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), max_size=6)):
        whole[place] = value
    damaged = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    for read in (read_picture, lambda one, name: opened(one, name).__enter__()):
        try:
            read(damaged, "damaged")
        except UserError as error:
            assert str(error).startswith("damaged: ") and "\n" not in str(error)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=20))
def test_sizes_are_read_or_refused(text):
    try:
        width, height = parse_size(text)
        assert width > 0 and height > 0
    except ValueError as error:
        assert "WIDTHxHEIGHT" in str(error)
    assert parse_size("160X96") == (160, 96)
