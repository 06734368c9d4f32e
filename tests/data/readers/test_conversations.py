import json
from pathlib import Path

import pytest

from referent.data.readers import read
from referent.data.readers.conversations import Dialogue, read_dialogues, square_to_pixels
from referent.data.records import Rejected

ASK = "<image>\nPlease provide the bounding box coordinate of the region this sentence describes: "
AXES = (
    ". Each image is accompanied by axes. If the question pertains to the bounding box coordinates, refer to the axes"
    " for the response."
)


def write(tmp_path: Path, image: str | None, *turns: str) -> Path:
    talk = [{"from": ("human", "gpt")[i % 2], "value": turn} for i, turn in enumerate(turns)]
    row = {"id": "r1", "conversations": talk} | ({"image": image} if image else {})
    (tmp_path / "sft.json").write_text(json.dumps([row]))
    return tmp_path / "sft.json"


@pytest.mark.parametrize(
    ("image", "answer", "box"),
    [
        ("wide.jpg", "[0.10, 0.30, 0.50, 0.70]", (20, 10, 100, 90)),  # 50 pixels of padding above
        ("tall.jpg", "[0.30,0.1,0.70,.5]", (10, 20, 90, 100)),  # and 50 on the left
        ("wide.jpg", "It is at [0.00, 0.25, 1.00, 0.75].", (0, 0, 200, 100)),
        ("wide.jpg", "[0.00, 0.24, 1.00, 0.76]", (0, 0, 200, 100)),  # rounded to two decimals: clipped
    ],
)
def test_a_box_of_the_padded_square_becomes_pixels(tmp_path: Path, images: Path, image: str, answer: str, box) -> None:
    (record,) = read("conversations", write(tmp_path, image, ASK + "the red cup", answer), images)
    assert record.box_xyxy == pytest.approx(box)
    assert (record.id, record.expression) == ("r1-0", "the red cup")


@pytest.mark.parametrize("size", [(640, 427), (333, 500), (5, 5), (101, 640)])
def test_pixels_come_back_from_the_encoding_of_vpp_llava(size: tuple[int, int]) -> None:
    side, box = max(size), (1, 2, 4, 5)
    pad = [(side - length) // 2 for length in size] * 2
    encoded = tuple((value + offset) / side for value, offset in zip(box, pad, strict=True))
    assert square_to_pixels(encoded, *size) == pytest.approx(box)


@pytest.mark.parametrize("hint", [AXES, AXES.removeprefix(".")], ids=["evaluation", "training"])
def test_the_hint_at_the_axes_is_no_part_of_the_expression(tmp_path: Path, images: Path, hint: str) -> None:
    (record,) = read("conversations", write(tmp_path, "wide.jpg", ASK + "a cup" + hint, "[0.1, 0.3, 0.2, 0.4]"), images)
    assert record.expression == "a cup"


def test_every_question_for_a_box_is_a_record_and_others_are_counted(tmp_path: Path, images: Path) -> None:
    turns = (ASK + "a", "[0.1, 0.3, 0.2, 0.4]", "What is it?", "A cup.", ASK + "b", "[0.1, 0.3, 0.2, 0.5]")
    a, other, b = read("conversations", write(tmp_path, "wide.jpg", *turns), images)
    assert (a.id, b.id) == ("r1-0", "r1-2")
    assert other.reason == "not a question for a box"


@pytest.mark.parametrize(
    ("image", "answer", "reason"),
    [
        ("wide.jpg", "There is none.", "no box in the answer"),
        ("wide.jpg", "[0.1, 0.2]", "no box in the answer"),
        ("wide.jpg", "[0.1, 0.3, 0.2, 0.4] and [0.5, 0.3, 0.6, 0.4]", "several boxes in one answer"),
        ("wide.jpg", "[nan, 0.2, 0.3, 0.4]", "box is not a number"),
        ("wide.jpg", "[0.1, 0.3, 1.4, 0.4]", "box outside the image"),
        ("wide.jpg", "[0.1, 0.0, 0.2, 0.1]", "box outside the image"),  # in the padding
        ("none.jpg", "[0.1, 0.2, 0.3, 0.4]", "missing image"),
        (None, "[0.1, 0.2, 0.3, 0.4]", "not a question for a box"),
    ],
)
def test_what_gives_no_box_is_named(tmp_path: Path, images: Path, image: str | None, answer: str, reason: str) -> None:
    (found,) = read("conversations", write(tmp_path, image, ASK + "a cup", answer), images)
    assert isinstance(found, Rejected)
    assert found.reason == reason


def test_a_dialogue_is_all_that_was_said_about_an_image(tmp_path: Path, images: Path) -> None:
    """Captions of a region among it, which no box answers."""
    turns = (ASK + "a", "[0.1, 0.3, 0.2, 0.4]", "What is in [0.1, 0.3, 0.2, 0.4]?", " A cup.", "And where?\n")
    (found,) = read_dialogues(write(tmp_path, "wide.jpg", *turns), images)
    exchanges = ((ASK.removeprefix("<image>\n") + "a", turns[1]), (turns[2], "A cup."))
    assert found == Dialogue("sft.json:1", "wide.jpg", exchanges)
    (found,) = read_dialogues(write(tmp_path, None, "Who is there?", "Nobody."), images)
    assert (found.image, found.exchanges) == (None, (("Who is there?", "Nobody."),))


@pytest.mark.parametrize(
    ("image", "turns", "reason"),
    [
        ("none.jpg", ("What?", "A cup."), "missing image"),
        ("../wide.jpg", ("What?", "A cup."), "image path leaves the image folder"),
        ("wide.jpg", ("What?",), "no answer"),
        ("wide.jpg", ("What?", "\n"), "empty answer"),
        (
            "wide.jpg",
            ("<image>What?", "A cup.", "And in <image>?", "None."),
            "more images are spoken of than there are",
        ),
        ("wide.jpg", ("What?", "A cup.", "And in <image>?", "None."), "the image is not spoken of first"),
        (None, ("<image>What?", "A cup."), "more images are spoken of than there are"),
    ],
)
def test_what_is_no_dialogue_is_named(
    tmp_path: Path, images: Path, image: str | None, turns: tuple[str, ...], reason: str
) -> None:
    (found,) = read_dialogues(write(tmp_path, image, *turns), images)
    assert found == Rejected(reason, "sft.json:1")


def test_speakers_take_turns(tmp_path: Path, images: Path) -> None:
    file = write(tmp_path, "wide.jpg", "What?", "A cup.")
    (row,) = json.loads(file.read_text())
    human, gpt = row["conversations"]
    for turns, good in (([gpt, human, gpt], True), ([human, human, gpt], False), ([human, gpt, gpt, human], False)):
        file.write_text(json.dumps([row | {"conversations": turns}]))
        (found,) = read_dialogues(file, images)
        assert isinstance(found, Dialogue) == good
