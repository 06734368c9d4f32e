import json
from pathlib import Path

import numpy as np
import pytest

from referent.core.answers import Answer, Referent
from referent.evaluation.predictions import (
    Prediction,
    PredictionsError,
    prediction_of,
    read_predictions,
    write_predictions,
)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    predictions = [
        Prediction(id="1", box_xyxy=(1, 2, 3, 4), score=0.5, ms=12.5),
        Prediction(id="2", box_xyxy=None),
        Prediction(id="3", points=((1, 2), (3, 4))),
        Prediction(id="4", error="the image can't be read"),
        Prediction(id="5", box_xyxy=(1, 2, 3, 4), boxes_xyxy=((1, 2, 3, 4), (5, 6, 7, 8)), score=0.5),
        Prediction(id="6", boxes_xyxy=()),
    ]
    write_predictions(tmp_path / "predictions.jsonl", predictions)
    assert read_predictions(tmp_path / "predictions.jsonl") == predictions


def test_rows_of_gseval_are_read_as_they_are(tmp_path: Path) -> None:
    rows = [{"idx": 7, "predicted_box": [1, 2, 3, 4]}, {"idx": 8, "predicted_box": None}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    first, second = read_predictions(tmp_path / "rows.jsonl")
    assert (first.id, first.box_xyxy) == ("7", (1, 2, 3, 4))
    assert (second.id, second.box_xyxy) == ("8", None)


def test_numbers_that_are_not_finite_are_no_answer(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"id": "a", "box_xyxy": [NaN, 1, 2, Infinity], "score": NaN}')
    assert read_predictions(tmp_path / "rows.jsonl") == [Prediction(id="a", box_xyxy=None)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "rows.jsonl:2: Invalid JSON"),
        ("[]", "rows.jsonl:2: Input should be an object"),
        ('{"box_xyxy": null}', "rows.jsonl:2: id: Field required"),
        ('{"id": "b", "bbox": [1, 2, 3, 4]}', "a prediction has one of box_xyxy, predicted_box"),
        ('{"id": "b", "box_xyxy": [1, 2, 3]}', "rows.jsonl:2: box_xyxy"),
        ('{"id": "b", "box_xyxy": "left"}', "rows.jsonl:2: box_xyxy"),
        ('{"id": "b", "mask": {"size": [100, 200], "counts": "0h"}}', "rows.jsonl:2: mask: the mask is cut off"),
        ('{"id": "b", "mask": {"size": [-100, 200], "counts": "0h"}}', "rows.jsonl:2: mask.size"),
    ],
    ids=["no JSON", "list", "no id", "other name", "three numbers", "text", "endless mask", "negative size"],
)
def test_wrong_row_is_named(tmp_path: Path, row: str, message: str) -> None:
    (tmp_path / "rows.jsonl").write_text('{"id": "a", "box_xyxy": null}\n' + row)
    with pytest.raises(PredictionsError, match=message):
        read_predictions(tmp_path / "rows.jsonl")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_byte_order_marks_and_blank_lines_are_no_rows(tmp_path: Path, encoding: str) -> None:
    rows = '{"id": "a", "box_xyxy": [1, 2, 3, 4]}\n\n \r\n{"id": "b", "box_xyxy": null}\n\n'
    (tmp_path / "rows.jsonl").write_bytes(rows.encode(encoding))
    assert [row.id for row in read_predictions(tmp_path / "rows.jsonl")] == ["a", "b"]


def test_text_of_no_encoding_is_told(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes("{}".encode("utf-16") + b"x")
    with pytest.raises(PredictionsError, match=r"rows\.jsonl:1: not UTF-8 text"):
        read_predictions(tmp_path / "rows.jsonl")


def test_none_in_words_is_an_answer_and_a_failed_pass_is_not() -> None:
    none = Answer.of("the cup", (), present=False, text="none", finish_reason="stop")
    failed = Answer.of("the cup", (), present=None, finish_reason="error")
    assert [prediction_of("1", answer).points for answer in (none, failed)] == [(), None]
    assert prediction_of("1", Answer.of("the cup", (), present=False, finish_reason="length")).finish_reason == "length"


def test_how_sure_a_model_is_that_nothing_is_there_is_no_score_of_something() -> None:
    nothing = Answer.of("the cup", (), present=False, score=0.9, text="none", finish_reason="stop")
    there = Referent.of_box("the cup", np.array([1, 2, 3, 4]), (9, 9), 0.9, True)
    guess = Answer.of("the cup", (), present=False, guess=there)
    point = Referent.of_point("the cup", np.array([1, 2]), (9, 9), 0.9, True)
    answers = [
        nothing,
        Answer.of("the cup", (there,), present=True),
        guess,
        Answer.of("the cup", (point,), present=True),
    ]
    assert [prediction_of("1", answer).score for answer in answers] == [0.0, 0.9, 0.9, 0.9]
    assert prediction_of("1", Answer.of("the cup", (), present=False, score=0.3)).score == 0.3  # of a referent head
    failed = Answer.of("the cup", (), present=None, finish_reason="error")
    assert (prediction_of("1", failed).score, prediction_of("1", failed).error is None) == (None, False)
