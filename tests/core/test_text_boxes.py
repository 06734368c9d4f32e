import pytest

from referent.core.text_boxes import format_box, parse_box


def test_a_formatted_box_parses_back() -> None:
    assert format_box([0.5124, 0.3, 0.2, 1.0]) == "[0.512, 0.300, 0.200, 1.000]"
    assert parse_box(format_box([0.5124, 0.3, 0.2, 1.0])) == (0.512, 0.3, 0.2, 1.0)


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("[0.5, 0.3, 0.2, 0.4]", (0.5, 0.3, 0.2, 0.4)),
        ("0.5,.3,0.2,0.4", (0.5, 0.3, 0.2, 0.4)),
        ("The box is [0.5, 0.3, 0.2, 0.4], I think: [1, 1, 1, 1]", (0.5, 0.3, 0.2, 0.4)),
        ("[320, 160, 64, 640]", (0.5, 0.25, 0.1, 1.0)),  # pixels of 640
        ("[641, 160, 64, 640]", None),
        ("[-0.5, 0.3, 0.2, 0.4]", None),
        ("[0.5, 0.3, 0.2]", None),
        ("0.5 0.3 0.2 0.4", None),
        ("the cup is not there", None),
        ("", None),
    ],
)
def test_boxes_are_read_out_of_answers(text: str, box: tuple[float, ...] | None) -> None:
    assert parse_box(text) == (None if box is None else pytest.approx(box))
