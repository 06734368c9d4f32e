import random

import pytest

from referent.core.text_forms import FORMS, read_text

BOX = (0.1, 0.2, 0.5, 0.8)


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (None, " [0.10, 0.20, 0.50, 0.80]"),
        (None, "The cup is at [.1,0.2,0.5,0.8]."),
        ("internvl", "<ref>cup</ref><box>[[100, 200, 500, 800]]</box>"),
        ("percent", "[10.0, 20, 50, 80]"),
        ("qwen3-vl", '```json\n[{"bbox_2d": [100, 200, 500, 800], "label": "cup"}]\n```'),
        (None, "<box><100><200><500><800></box>"),
        (None, "<box>(100,200),(500,800)</box>"),
        ("vg", "0.3, 0.5, 0.4, 0.6"),
        ("vg", "[192, 320, 256, 384]"),
    ],
)
def test_published_forms_are_read(form: str | None, text: str) -> None:
    reading = read_text(text, form)
    assert reading.reason is None
    assert reading.boxes_in_pixels((1, 1)) == (pytest.approx(BOX),)


def test_forms_that_count_in_other_steps() -> None:
    assert read_text("<loc0256><loc0512><loc0512><loc1023> cat").boxes == (
        pytest.approx((0.5, 0.25, 1023 / 1024, 0.5)),
    )
    assert read_text("cat<loc_0><loc_99><loc_499><loc_999>").boxes == (pytest.approx((0.0005, 0.0995, 0.4995, 0.9995)),)
    assert read_text("<|box_start|><0><333><666><999><|box_end|>").boxes == (pytest.approx((0, 1 / 3, 2 / 3, 1)),)
    pixels = read_text('{"bbox_2d": [10, 20, 30, 40]', "qwen2.5-vl")
    assert pixels.boxes_in_pixels(None) == ((10, 20, 30, 40),)


@pytest.mark.parametrize(
    ("text", "points"),
    [
        (' <point x="17.0" y="66.5" alt="cup">cup</point>', [(0.17, 0.665)]),
        ('<point x="17.0" y="66.5">cup</point>', [(0.17, 0.665)]),
        (' <point x="54.5" y="45.5" alt="Dude with "9".">Dude with "9".</point>', [(0.545, 0.455)]),
        ('<points x1="1" y1="2" x2="3.5" y2="100.0" alt="x">x</points>', [(0.01, 0.02), (0.035, 1.0)]),
        ('<points x1="1" y1="2" x2="3.5" y2="4', [(0.01, 0.02)]),
        ('<points x1="1" y1="2" x2="300" y2="4" alt="x">', [(0.01, 0.02)]),
    ],
)
def test_points_are_read_also_where_the_list_was_cut_off(text: str, points: list[tuple[float, float]]) -> None:
    assert read_text(text).points == tuple(pytest.approx(point) for point in points)


@pytest.mark.parametrize("text", ["There are none.", " none", "<box>none</box>", "[]"])
def test_nothing_there_is_an_answer(text: str) -> None:
    reading = read_text(text)
    assert (reading.boxes, reading.points, reading.reason) == ((), (), None)


@pytest.mark.parametrize(
    ("text", "form", "reason"),
    [
        ("", None, "no box"),
        ("The cup is not visible.", None, "no box"),
        ("[0.1, 0.2, 0.5]", None, "no box"),
        ("0.5 0.3 0.2 0.4", "vg", "no box"),
        ("[-0.5, 0.3, 0.2, 0.4]", "vg", "no box"),
        ("[0.5, 0.2, 0.1, 0.8]", None, "corners out of order"),
        ("[0.5, 0.5, 0.0, 0.4]", "vg", "without area"),
        ("[100, 200, 500, 800]", None, "name the form"),
        ('[{"bbox_2d": [100, 200, 500, 800]}]', None, "name the form"),
        ("[100, 200, 500, 1800]", "internvl", "beyond"),
        ("[641, 160, 64, 640]", "vg", "beyond"),
        ('<point x="101" y="5" alt="x">', None, "beyond"),
        ("[" + "9" * 400 + ", 1, 2, 3]", "pixels", "no box"),
    ],
)
def test_what_cannot_be_read_has_a_reason(text: str, form: str | None, reason: str) -> None:
    reading = read_text(text, form)
    assert reason in str(reading.reason)
    assert not reading.boxes
    assert not reading.points


def test_no_text_is_an_error() -> None:
    pieces = [
        "[", "]", ",", "<", ">", "box", "</box>", "<box>", "point", ' x1="', '"', "loc_", "loc0", "0.", "12",
        "999", "1e9", "nan", "-", "\n", "\0", "٣", "😀", "bbox_2d", '"bbox_2d":', "none", "NaN", " ", "<points",
        'y1="', "\ud800",
    ]  # fmt: skip
    generator = random.Random(0)
    for _ in range(3000):
        text = "".join(generator.choices(pieces, k=generator.randint(0, 30)))
        for form in (None, *FORMS):
            reading = read_text(text, form)
            assert reading.reason is None or not (reading.boxes or reading.points)
