import base64
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.batching import Setting, with_setting
from benchmarks.flops import model_flops
from benchmarks.lib.service import EXPRESSIONS, PICTURE, InProcess, Subject, batch, form
from benchmarks.noop import NAME, VALUE, publish_noop
from benchmarks.perf_analyzer import input_data, shapes
from referent.core.bundle import verify_files
from referent.core.grammar import Generation, PointGrammar
from referent.core.kind import Options
from referent.triton.repository import read_config
from tests.support.fake_triton import publish
from tests.support.tiny import MODEL_REPOSITORY


@pytest.fixture(scope="module")
def mini() -> Subject:
    return Subject(MODEL_REPOSITORY, "mini")


def test_batch_of_requests_gives_what_each_gives_alone(mini: Subject) -> None:
    ask = InProcess(mini)
    singles = [mini.arrays(PICTURE.read_bytes(), [text]) for text in EXPRESSIONS[:3]]
    together = ask(batch(singles))
    for index, single in enumerate(singles):
        alone = ask(single)
        np.testing.assert_allclose(together["boxes"][index], alone["boxes"][0], atol=1e-5)
        np.testing.assert_allclose(together["scores"][index], alone["scores"][0], atol=1e-5)


@pytest.mark.parametrize("count", [1, 8])
def test_noop_model_has_the_tensors_of_the_other(mini: Subject, tmp_path: Path, count: int) -> None:
    publish_noop(MODEL_REPOSITORY, "mini", tmp_path)
    verify_files(tmp_path, NAME)
    noop = Subject(tmp_path, NAME)
    arrays = mini.arrays(PICTURE.read_bytes(), EXPRESSIONS[:count])
    ours, theirs = InProcess(noop)(arrays), InProcess(mini)(arrays)
    assert {name: value.shape for name, value in ours.items()} == {n: v.shape for n, v in theirs.items()}
    assert (ours["boxes"] == VALUE).all()


def test_operations_grow_with_tokens_and_packing_saves_most_of_them(mini: Subject) -> None:
    one, eight = (model_flops(mini, *bucket) for bucket in (mini.bundle.buckets[0], mini.bundle.buckets[2]))
    parameters = 7.3e6  # of mini; a token of the language model's 2.9 M costs two operations a weight
    assert 2 * 2.9e6 * 160 < one < 2 * parameters * 1000
    assert one < eight < 2 * one


def test_form_is_what_the_gateway_reads() -> None:
    body = form(b"picture", ["the cup", "a plate"], "mini")
    assert body.headers["Content-Type"].startswith("multipart/form-data; boundary=")
    assert body.content.count(b'name="expression"') == 2
    assert b"picture" in body.content


def test_perf_analyzer_gets_the_tensors_of_one_request(mini: Subject) -> None:
    arrays = mini.arrays(PICTURE.read_bytes(), EXPRESSIONS[:2])
    [tensors] = json.loads(input_data(arrays))["data"]
    for name, array in arrays.items():
        content = np.frombuffer(base64.b64decode(tensors[name]["b64"]), array.dtype)
        np.testing.assert_array_equal(content.reshape(1, *tensors[name]["shape"]), array)
    assert "--shape=loc_positions:4" in shapes(arrays)


def test_perf_analyzer_gets_what_a_generator_is_asked(tmp_path: Path) -> None:
    generation = Generation(grammar=PointGrammar(), eos_token_id=1)
    publish(tmp_path, kind="generator", generation=generation, has_scores=False)
    arrays = Subject(tmp_path, "tiny").arrays(PICTURE.read_bytes(), ["a cup", "the plate"], Options(max_instances=9))
    [tensors] = json.loads(input_data(arrays))["data"]
    assert tensors["labels"] == {"b64": base64.b64encode(b"a cup\0\0\0\0the plate").decode(), "shape": [2, 9]}
    assert tensors["max_instances"] == {"b64": base64.b64encode(b"\x09\0\0\0").decode(), "shape": [1]}
    assert "--shape=labels:2,9" in shapes(arrays)


def test_setting_of_a_sweep_is_in_every_part(mini: Subject, tmp_path: Path) -> None:
    copy = with_setting(mini, Setting(500, 2, 1, 0), tmp_path / "copy")
    for step in ("vision_encoder", "language_model", "box_head"):
        config = read_config(copy / f"mini_{step}" / "1" / "config.pbtxt")
        assert config.dynamic_batching.max_queue_delay_microseconds == 500
        assert config.instance_group[0].count == 2
        assert config.parameters["intra_op_thread_count"].string_value == "1"
