import errno
import io
import os
import struct
import subprocess
import time

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from referent.core.images import (
    DecodeTimeoutError,
    ExhaustedError,
    ImageError,
    ImageFormatError,
    ImageTooLargeError,
    decode_image,
    to_rgb,
)
from referent.core.transform import ImageTransform
from tests.support.hostile_images import chunk

REDUCING_MODES = ("letterbox", "center_crop", "stretch")
MODES = (*REDUCING_MODES, "pad")


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@given(
    st.sampled_from(MODES),
    st.integers(1, 10_000),
    st.integers(1, 10_000),
    st.tuples(*[st.floats(0, 1)] * 4),
    st.sampled_from([28, 288, 336]),
)
@example("letterbox", 10_000, 3, (0, 0, 1, 1), 336)
@example("letterbox", 1, 1, (0, 0, 1, 1), 336)
@example("center_crop", 3, 10_000, (0, 0, 1, 1), 336)
def test_boxes_round_trip_through_every_transform(
    mode: str, width: int, height: int, corners: tuple[float, ...], size: int
) -> None:
    box = np.array(corners) * [width, height, width, height]
    frame = ImageTransform(mode=mode, size=size).frame((width, height))
    tolerance = 1e-6 * max(width, height)
    np.testing.assert_allclose(frame.boxes_to_image(frame.boxes_from_image(box)), box, atol=tolerance)
    np.testing.assert_allclose(frame.points_to_image(frame.points_from_image(box[:2])), box[:2], atol=tolerance)


@given(st.integers(1, 10_000), st.integers(1, 10_000))
def test_letterbox_shows_the_whole_image(width: int, height: int) -> None:
    frame = ImageTransform(mode="letterbox", size=336).frame((width, height))
    corners = frame.points_from_image(np.array([[0.0, 0], [width, height]]))
    assert (corners >= -1e-9).all()
    assert (corners <= 1 + 1e-9).all()
    assert (corners[1] - corners[0]).max() == pytest.approx(1)


@pytest.mark.parametrize("mode", REDUCING_MODES)
@pytest.mark.parametrize("size", [(1, 1), (10_000, 3), (3, 10_000), (378, 504), (640, 480), (336, 336)])
def test_apply_gives_a_square_of_uint8(mode: str, size: tuple[int, int]) -> None:
    square = ImageTransform(mode=mode, size=336).apply(Image.new("RGB", size, (10, 20, 30)))
    assert square.shape == (336, 336, 3)
    assert square.dtype == np.uint8
    assert (square == (10, 20, 30)).all(-1).any()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(400, 200), (200, 400), (333, 333)])
def test_a_drawn_rectangle_is_where_its_box_says(mode: str, size: tuple[int, int]) -> None:
    width, height = size
    box = np.array([0.45 * width, 0.4 * height, 0.6 * width, 0.55 * height]).round()
    image = Image.new("RGB", size)
    image.paste((255, 255, 255), tuple(int(v) for v in box))
    transform = ImageTransform(mode=mode, size=336, pad_rgb=(0, 0, 0))
    square = transform.apply(image)
    rows, columns = np.where(square[..., 0] > 127)
    drawn = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    expected = transform.frame(size).points_from_image(box.reshape(2, 2)) * 336
    np.testing.assert_allclose(expected.reshape(4), drawn, atol=1.01)


def test_padding_has_the_given_colour_and_is_centred() -> None:
    square = ImageTransform(size=100, pad_rgb=(1, 2, 3)).apply(Image.new("RGB", (50, 100), "white"))
    assert (square[:, :25] == (1, 2, 3)).all()
    assert (square[:, 25:75] == 255).all()
    assert (square[:, 75:] == (1, 2, 3)).all()


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["RGB", "L", "CMYK", "P", "1"]), st.sampled_from(["JPEG", "PNG", "WEBP"]))
def test_every_mode_decodes_to_rgb(mode: str, format: str) -> None:
    supported = {"JPEG": ("RGB", "L", "CMYK"), "PNG": ("RGB", "L", "P", "1"), "WEBP": ("RGB", "L")}
    if mode in supported[format]:
        assert decode_image(encoded(Image.new(mode, (7, 5)), format)).mode == "RGB"


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    grey = Image.fromarray(np.full((4, 4), 0x8000, np.uint16))
    assert decode_image(encoded(grey)).getpixel((0, 0)) == (128, 128, 128)


def test_transparency_is_shown_on_white() -> None:
    assert decode_image(encoded(Image.new("RGBA", (3, 3), (255, 0, 0, 0)))).getpixel((1, 1)) == (255, 255, 255)


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees
    assert decode_image(encoded(Image.new("RGB", (40, 20)), "JPEG", exif=exif)).size == (20, 40)


def test_first_frame_of_an_animation_is_used() -> None:
    red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    data = encoded(red, "WEBP", save_all=True, append_images=[blue], lossless=True)
    assert decode_image(data).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"GIF89a" + bytes(40), b"\xff\xd8\xff", b"%PDF-1.7", b"<svg/>"], ids=repr
)
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError):
        decode_image(data)


def test_other_formats_are_refused() -> None:
    with pytest.raises(ImageFormatError, match="JPEG, PNG, WEBP"):
        decode_image(encoded(Image.new("RGB", (5, 5)), "BMP"))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_truncated_images_are_refused(format: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    data = encoded(noise, format)
    with pytest.raises(ImageError):
        decode_image(data[: len(data) // 2])


def smooth(width: int, height: int) -> Image.Image:
    """What photographs are like: little detail at the scale of a pixel."""
    small = np.random.default_rng(0).integers(0, 256, (height // 50 + 1, width // 50 + 1, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("mode", REDUCING_MODES)
@pytest.mark.parametrize(
    ("size", "orientation", "decoded"),
    [
        ((1600, 1200), 1, (400, 300)),
        ((1600, 1200), 6, (300, 400)),
        ((1600, 1202), 3, (800, 601)),
        ((1601, 1200), 8, None),
    ],
    ids=["quarter", "turned", "half", "odd"],
)
def test_large_jpeg_is_decoded_in_fewer_pixels_and_changes_little(
    mode: str, size: tuple[int, int], orientation: int, decoded: tuple[int, int] | None
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data, transform = encoded(smooth(*size), "JPEG", exif=exif), ImageTransform(mode=mode, size=150)
    image = decode_image(data)
    whole = transform.apply(image)
    picture = transform.decode(data)
    square = transform.apply(picture)
    assert picture.pixels.size == (decoded or picture.size)
    assert picture.size == image.size
    assert np.abs(square.astype(int) - whole).max() <= 8


@pytest.mark.parametrize(
    ("size", "padding"),
    [
        ((5, 3), (0, 1)),
        ((3, 6), (1, 0)),
        ((9, 9), (0, 0)),
        ((1001, 300), (0, 350)),
        ((301, 900), (299, 0)),
        ((2000, 3), (0, 998)),
    ],
)
def test_padding_first_is_the_same_to_the_bit_as_padding_and_resizing_the_whole(
    size: tuple[int, int], padding: tuple[int, int]
) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8))
    square = Image.new("RGB", (max(size),) * 2, (122, 116, 104))
    square.paste(image, padding)
    transform = ImageTransform(mode="pad", size=48)
    np.testing.assert_array_equal(transform.apply(image), square.resize((48, 48), Image.Resampling.BICUBIC))
    frame = transform.frame(size)
    np.testing.assert_array_equal(frame.points_from_image(np.zeros(2)) * max(size), padding)
    np.testing.assert_array_equal(frame.points_to_image(np.array([0.5, 0.5])), max(size) / 2 - np.array(padding))


@pytest.mark.parametrize("size", [(1, 1), (10_000, 3), (3, 10_000)])
def test_padding_first_gives_a_square_of_any_image(size: tuple[int, int]) -> None:
    square = ImageTransform(mode="pad", size=336).apply(Image.new("RGB", size, (10, 20, 30)))
    assert square.shape == (336, 336, 3)
    assert (square < (122, 116, 104)).any()


def test_padding_first_decodes_all_pixels_of_a_large_jpeg() -> None:
    data = encoded(smooth(1600, 1200), "JPEG")
    assert ImageTransform(mode="pad", size=100).decode(data).pixels.size == (1600, 1200)


@pytest.mark.parametrize(
    ("size", "extent"),
    [
        ((480, 301), (0, 119, 640, 520)),
        ((211, 337), (119, 0, 520, 640)),
        ((9, 9), (0, 0, 640, 640)),
        ((9000, 1), (0, 319, 640, 320)),
    ],
)
def test_the_extent_of_a_letterbox_is_what_is_not_padding(
    size: tuple[int, int], extent: tuple[int, int, int, int]
) -> None:
    transform = ImageTransform(size=640, pad_rgb=(0, 0, 0), resample="bilinear")
    rows, columns = transform.apply(Image.new("RGB", size, "white")).any(axis=2).nonzero()
    assert transform.extent(size) == extent
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == extent


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_small_images_and_other_formats_are_decoded_whole(format: str) -> None:
    size = (290, 290) if format == "JPEG" else (1600, 1200)
    picture = ImageTransform(size=150).decode(encoded(smooth(*size), format))
    assert picture.pixels.size == picture.size == size


def test_jpeg_of_many_scans_is_refused() -> None:
    data = encoded(smooth(64, 64), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    assert decode_image(data).size == (64, 64)
    with pytest.raises(ImageError, match="scans; the limit is 30"):
        decode_image(data[:last] + data[last:-2] * 30 + data[-2:])


@pytest.mark.parametrize("size", [(65_536, 1), (1, 65_536), (49_900_000, 1), (200_000, 200)])
def test_side_is_limited_before_decoding(size: tuple[int, int]) -> None:
    data = encoded(Image.new("L", (1, 1))).replace(struct.pack(">II", 1, 1), struct.pack(">II", *size))
    with pytest.raises(ImageTooLargeError, match=f"{size[0]}x{size[1]}; the limit of a side is 65535"):
        decode_image(data)


def webp(width: int, height: int) -> bytes:
    """A small picture that announces a large canvas."""
    canvas = b"\x12\0\0\0" + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunks = chunk(b"VP8X", canvas) + chunk(b"ANIM", bytes(6)) + encoded(Image.new("RGB", (8, 8)), "WEBP")[12:]
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WEBP" + chunks


def progressive(width: int, height: int) -> bytes:
    data = encoded(Image.new("RGB", (8, 8)), "JPEG", progressive=True, subsampling="4:4:4")
    at = data.index(b"\xff\xc2") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


@pytest.mark.parametrize(
    "data",
    [webp(7000, 7000), webp(16_383, 2000), progressive(8000, 7900), webp(2000, 16_384)],
    ids=["square", "wide", "progressive", "high"],
)
def test_memory_is_limited_before_decoding(data: bytes) -> None:
    with pytest.raises(ImageTooLargeError, match="MB to decode; the limit is 600 MB"):
        decode_image(data, max_pixels=100_000_000)


@pytest.mark.parametrize("lacking", [errno.EMFILE, errno.ENOMEM, errno.EAGAIN])
def test_what_no_process_is_left_for_may_be_decoded_later(monkeypatch: pytest.MonkeyPatch, lacking: int) -> None:
    def fails(*arguments: object, **options: object) -> None:
        raise OSError(lacking, os.strerror(lacking))

    data = encoded(Image.new("RGB", (1200, 1000), "red"), "AVIF", speed=10)
    monkeypatch.setattr(subprocess, "run", fails)
    with pytest.raises(ExhaustedError, match=os.strerror(lacking)):
        decode_image(data, until=time.monotonic() + 60)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "AVIF"])
def test_decoding_ends_when_its_time_is_over(format: str) -> None:
    data = encoded(smooth(1200, 1200), format)
    with pytest.raises(DecodeTimeoutError):
        decode_image(data, until=time.monotonic() - 1)
    assert decode_image(data, until=time.monotonic() + 60).size == (1200, 1200)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_avif_decoded_by_a_process_of_its_own_is_the_same(mode: str) -> None:
    image = smooth(1200, 1000).convert(mode)
    image.paste((0, 0, 0, 0)[: len(mode)], (100, 100, 500, 500))
    data = encoded(image, "AVIF", speed=10)
    assert decode_image(data, until=time.monotonic() + 60).tobytes() == decode_image(data).tobytes()
    with pytest.raises(ImageError, match="AVIF image is truncated or damaged"):
        decode_image(data[: len(data) // 2], until=time.monotonic() + 60)


def test_heic_is_refused_with_the_way_out() -> None:
    with pytest.raises(ImageFormatError, match="HEIC image, which few programs read: save it as JPEG"):
        decode_image(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "I;16", "1", "CMYK"])
def test_bands_of_a_large_image_make_the_same_picture(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = smooth(60, 90).convert("L").convert(mode) if mode != "CMYK" else smooth(60, 90).convert(mode)
    whole = to_rgb(image)
    monkeypatch.setattr("referent.core.images.BAND_PIXELS", 7 * 60 + 1)
    assert to_rgb(image) == whole


def test_pixels_are_limited_before_decoding() -> None:
    data = encoded(Image.new("L", (3000, 2000)))
    with pytest.raises(ImageTooLargeError, match=r"6\.0 MP \(3000x2000\); the limit is 5\.0 MP"):
        decode_image(data[:200], max_pixels=5_000_000)  # the header is enough
