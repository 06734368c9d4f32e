from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from referent.core.prompts import PromptEncoder
from referent.core.spec import ModelSpec
from referent.data.records import Record, write_records
from referent.training.encoding import collate_trimmed
from referent.training.losses import NO_LABEL
from referent.training.record_stream import DataError, RecordStream, load_records, order_of
from tests.support.tiny import TINY_BUCKETS, TINY_GENERATION, TINY_IMAGE, TINY_IMAGE_TOKENS, TINY_PROMPT

MakeStream = Callable[..., RecordStream]


@pytest.fixture
def make_stream(records_folder: Path, tokenizer_file: Path) -> MakeStream:
    def make(row_expressions: int = 4, seed: int = 0, box_frame: str = "transformed", **options: int) -> RecordStream:
        spec = ModelSpec(
            image=TINY_IMAGE, image_tokens=TINY_IMAGE_TOKENS, box_frame=box_frame, prompt=TINY_PROMPT,
            buckets=TINY_BUCKETS, present_threshold=None, generation=TINY_GENERATION,
        )  # fmt: skip
        encoder = PromptEncoder(TINY_PROMPT, tokenizer_file, TINY_IMAGE_TOKENS)
        records = load_records(records_folder / "train.jsonl", records_folder)
        return RecordStream(records, records_folder, spec, encoder, row_expressions, seed, **options)

    return make


def test_every_epoch_has_every_item_in_another_order(make_stream: MakeStream) -> None:
    stream = make_stream()
    epochs = [[stream[epoch * 5 + index]["boxes"][0].tolist() for index in range(5)] for epoch in range(3)]
    assert len(stream) == len(stream.items) == 5
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert epochs[0] != epochs[1] or epochs[1] != epochs[2]
    again = make_stream()
    assert epochs[2] == [again[10 + index]["boxes"][0].tolist() for index in range(5)]


def test_an_image_with_more_expressions_than_a_row_becomes_several_items(make_stream: MakeStream) -> None:
    items = make_stream(row_expressions=2).items
    assert [len(item) for item in items] == [2, 1] * 5
    assert len({record.id for item in items for record in item}) == 15


@pytest.mark.parametrize("box_frame", ["transformed", "image"])
def test_targets_are_boxes_of_the_frame_and_absent_objects_have_none(make_stream: MakeStream, box_frame: str) -> None:
    stream = make_stream(box_frame=box_frame)
    record = next(r for item in stream.items for r in item if r.image == "train-0.png")
    position = next(i for i in range(5) if _item_of(stream, i)[0].image == "train-0.png")
    row = stream[position]
    assert row["used"].tolist() == [True, True, True, False]
    assert row["present"].tolist() == [True, True, False, False]
    left, top = record.box_xyxy[:2]
    expected = {  # 40x30 in a square of 28: scale .7, 3 pixels (rounded down) above
        "transformed": [(left + 5) / 40, ((top + 5) * 0.7 + 3) / 28, 10 / 40, 10 * 0.7 / 28],
        "image": [(left + 5) / 40, (top + 5) / 30, 10 / 40, 10 / 30],
    }[box_frame]
    np.testing.assert_allclose(row["boxes"][0], expected, atol=1e-6)


def _item_of(stream: RecordStream, index: int) -> list[Record]:
    return stream.items[order_of(stream._seed, 0, len(stream.items))[index]]


def test_labels_of_text_are_the_tokens_after_each_position(make_stream: MakeStream, tokenizer_file: Path) -> None:
    stream = make_stream(end_token_id=1)
    encoder = PromptEncoder(TINY_PROMPT, tokenizer_file, TINY_IMAGE_TOKENS)
    assert all(record.box_xyxy for item in stream.items for record in item)  # absent objects are left out
    row = stream[0]
    chosen = row["labels"] != NO_LABEL
    labels, positions = row["labels"][chosen].tolist(), row["loc_positions"][chosen].tolist()
    ends = [index for index, label in enumerate(labels) if label == 1]
    assert row["input_ids"][positions[0]] == TINY_PROMPT.loc_token_id  # the answer follows [LOC]
    assert row["input_ids"][[p + 1 for p in positions[: ends[0]]]].tolist() == labels[: ends[0]]
    (box,) = TINY_GENERATION.grammar.read(encoder.decode(labels[: ends[0]]))
    np.testing.assert_allclose(box.values, row["boxes"][0], atol=6e-4)


def test_trimmed_batches_lose_shared_padding_alone(make_stream: MakeStream) -> None:
    stream = make_stream(row_expressions=2)
    rows = [stream[index] for index in range(10)]
    batch = collate_trimmed(rows)
    used = max((row["segment_ids"] >= 0).sum() for row in rows)
    assert batch["input_ids"].shape == batch["segment_ids"].shape == (10, used)
    assert (batch["segment_ids"] >= 0).sum() == sum((row["segment_ids"] >= 0).sum() for row in rows)
    assert batch["image"].dtype == torch.uint8


def test_a_limit_is_a_seeded_choice(records_folder: Path) -> None:
    choices = [
        [record.id for record in load_records(records_folder / "train.jsonl", records_folder, 6, seed)]
        for seed in (0, 0, 1)
    ]
    assert choices[0] == choices[1] != choices[2]
    assert len(choices[0]) == 6


def test_bad_data_is_named(records_folder: Path, tmp_path: Path, make_stream: MakeStream) -> None:
    file = tmp_path / "train.jsonl"
    record = {"id": "7", "image": "train-0.png", "width": 40, "height": 30, "expression": "cup"}
    for changed, reason in (
        ({"image": "none.png"}, r"none\.png is not in"),
        ({"points": ((1.0, 2.0),)}, "'7' .* has points and no box"),
    ):
        write_records(file, [Record(**record | changed)])
        with pytest.raises(DataError, match=reason):
            load_records(file, records_folder)
    file.write_text('{"id": 7}\n')
    with pytest.raises(DataError, match=r"train\.jsonl:1: wrong schema"):
        load_records(file, records_folder)
    stream = make_stream()
    stream._images = tmp_path
    (tmp_path / stream.items[0][0].image).write_bytes(b"no image")
    with pytest.raises(DataError, match="of record"):
        stream[order_of(stream._seed, 0, len(stream.items)).index(0)]
