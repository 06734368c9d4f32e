"""A checkpoint that answers in text, exported: configs, graphs, and what they write."""

import ctypes
from pathlib import Path
from shutil import copyfile

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from google.protobuf import text_format
from onnxruntime import OrtValue
from tritonclient.grpc import model_config_pb2

from export import build as exporter
from export.graphs import Part
from export.parity import ParityError
from referent.core.bundle import load_bundle, verify_files
from referent.core.contract import dims_of, dtype_of, part_name
from referent.core.grammar import GenerationFile
from referent.generation.device_memory import Columns, DeviceColumns, Host
from referent.generation.engine import Engine
from referent.generation.onnx import OnnxDecoder
from referent.generation.questions import load_tokenizer
from referent.kinds.generator import GENERATOR, Generator
from referent.modeling.checkpoint import load_checkpoint
from referent.modeling.grounding import GroundingModel
from tests.support.text_model import (
    GRAMMARS,
    Case,
    assert_as_reference,
    make_cases,
    rows_of,
    save_text_checkpoint,
    write_joining,
)
from tests.support.text_tokenizer import EOS_ID, TEXT_VOCABULARY


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_text_checkpoint(tmp_path_factory.mktemp("text"), GRAMMARS[0])


@pytest.fixture(scope="module")
def repository(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as versions 1 (fp32) and 2 (fp16)."""
    repository = tmp_path_factory.mktemp("repository")
    exporter.export(checkpoint, "words", repository, max_batch_size=4)
    exporter.export(checkpoint, "words", repository, dtype="fp16", max_batch_size=4)
    return repository


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> GroundingModel:
    model, _ = load_checkpoint(checkpoint)
    model.llava = model.llava.merge_and_unload()
    return model


@pytest.fixture(scope="module")
def cases(model: GroundingModel) -> list[Case]:
    return make_cases(model, 16)


def decoder_of(repository: Path, version: int, place: Host | None = None) -> OnnxDecoder:
    file = repository / "words_generator" / str(version) / "model.onnx"
    return OnnxDecoder(file, slots=4, columns=512, place=place)


class ByAddress(Host):
    """Keys and values known by their addresses alone, as those in a GPU's memory are."""

    def __init__(self) -> None:
        self.copies = 0

    def columns(self, heads: int, width: int, dtype: npt.DTypeLike) -> Columns:
        return DeviceColumns(self.device, self._copy_2d, heads, width, dtype)

    def _copy_2d(self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, height: int) -> None:
        self.copies += 1
        for line in range(height):
            ctypes.memmove(target + line * target_pitch, source + line * source_pitch, width)


def test_what_is_published_is_complete_and_says_how_to_write(repository: Path, checkpoint: Path) -> None:
    bundle, _ = verify_files(repository, "words", "1")
    assert (bundle.kind, bundle.generation.grammar.gives) == ("generator", "boxes")
    settings = GenerationFile.model_validate_json((repository / "words_generator/1/generation.json").read_text())
    assert settings.model_dump().items() >= bundle.generation.model_dump().items()
    assert settings.slots == 4
    assert settings.columns >= 96 + 4 * 30
    tokenizer = (repository / "words_generator" / "1" / "tokenizer.json").read_text("utf-8")
    assert load_tokenizer(tokenizer, TEXT_VOCABULARY, EOS_ID).tokenize_str(" [0.5")
    assert {name for name in bundle.files if "generator" in name} == {
        f"words_generator/1/{file}" for file in ("config.pbtxt", "model.onnx", "generation.json", "tokenizer.json")
    }


@pytest.mark.parametrize("version", [1, 2])
def test_configs_are_the_contract(repository: Path, version: int) -> None:
    kind, (bundle, digest) = Generator(), load_bundle(repository, "words", str(version))
    sizes = kind.sizes(bundle) | {"D": 64}

    def config_of(file: Path) -> model_config_pb2.ModelConfig:
        return text_format.Parse(file.read_text(), model_config_pb2.ModelConfig())

    def declared(tensors: object) -> dict[str, tuple[str, list[int]]]:
        return {t.name: (model_config_pb2.DataType.Name(t.data_type), list(t.dims)) for t in tensors}

    def contract(tensors: object) -> dict[str, tuple[str, list[int]]]:
        return {t.name: ("TYPE_" + dtype_of(t, bundle.dtype), dims_of(t, sizes)) for t in tensors}

    ensemble = config_of(repository / "words" / str(version) / "config.pbtxt")
    assert declared(ensemble.input) == contract(kind.inputs)
    assert declared(ensemble.output) == contract(kind.outputs(bundle))
    assert ensemble.parameters["digest"].string_value == digest
    assert ensemble.max_batch_size == 1
    part = config_of(repository / part_name("words", GENERATOR) / "config.pbtxt")  # of the newest
    assert (part.backend, part.max_batch_size) == ("generator", 1)
    assert not part.HasField("dynamic_batching")
    assert not part.model_warmup
    assert part.parameters["FORCE_CPU_ONLY_INPUT_TENSORS"].string_value == "no"
    assert part.parameters["arena_extend_strategy"].string_value == "1"
    encoder = config_of(repository / "words_vision_encoder" / "config.pbtxt")
    assert (encoder.backend, encoder.max_batch_size, len(encoder.model_warmup)) == ("onnxruntime", 4, 2)
    assert encoder.HasField("dynamic_batching")
    if version == 2:
        assert declared(part.input) == contract(GENERATOR.inputs)
        assert declared(part.output) == contract(kind.step_outputs(GENERATOR, bundle))


@pytest.mark.parametrize("version", [1, 2], ids=["fp32", "fp16"])
def test_a_cache_known_by_address_holds_what_one_of_arrays_does(
    repository: Path, model: GroundingModel, cases: list[Case], version: int
) -> None:
    """And features may be what ONNX Runtime holds, kept as a request's are."""
    place, found = ByAddress(), []
    for decoder in (decoder_of(repository, version), decoder_of(repository, version, place)):
        decoder.warm_up()
        rows = [row for case in cases for row in rows_of(model, case, packed=True)]
        for row in rows:
            features = np.asarray(row.image_features, np.float32 if version == 1 else np.float16)
            row.image_features = decoder.keep(OrtValue.ortvalue_from_numpy(features))
        assert write_joining(Engine(decoder), rows) > 1
        found.append([(answer.ids, answer.decisions) for row in rows for answer in row.answers])
        assert decoder.cache_bytes == 4 * 4 * 2 * 512 * 16 * (4 if version == 1 else 2)
    assert found[0] == found[1]
    assert place.copies > 100


@pytest.mark.parametrize("packed", [False, True], ids=["single", "packed"])
def test_the_graph_writes_what_transformers_writes(
    repository: Path, model: GroundingModel, cases: list[Case], packed: bool
) -> None:
    rows = [row for case in cases for row in rows_of(model, case, packed)]
    assert write_joining(Engine(decoder_of(repository, 1)), rows) > 1
    assert_as_reference(rows, cases)


def test_half_precision_weights_give_the_same_answers_but_for_close_decisions(
    repository: Path, model: GroundingModel, cases: list[Case]
) -> None:
    rows = [row for case in cases for row in rows_of(model, case, packed=True)]
    write_joining(Engine(decoder_of(repository, 2)), rows)
    answers = [answer for row in rows for answer in row.answers]
    references = [reference for case in cases for reference in case.references]
    clear = [pair for pair in zip(answers, references, strict=True) if pair[1].least_gap > 0.05]
    assert len(clear) > 5
    assert all(answer.ids == reference.ids for answer, reference in clear)


def test_the_comparison_tells_a_decoder_without_its_adapter(repository: Path, checkpoint: Path) -> None:
    model, _ = load_checkpoint(checkpoint)
    model.llava = model.llava.unload()
    cases = make_cases(model, 4)
    rows = [row for case in cases for row in rows_of(model, case, packed=True)]
    write_joining(Engine(decoder_of(repository, 1)), rows)
    with pytest.raises(AssertionError):
        assert_as_reference(rows, cases)


def test_a_damaged_graph_is_not_published(
    checkpoint: Path, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(part: Part, tensors: object, dtype: str, file: Path, *others: object) -> None:
        copyfile(repository / part_name("words", part.step) / "1" / "model.onnx", file)
        if part.step.suffix == "generator":
            graph = onnx.load(file)
            weights = next(t for t in graph.graph.initializer if "lm_head" in t.name)
            weights.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weights) * 1.01, weights.name))
            onnx.save(graph, file)

    monkeypatch.setattr(exporter, "export_onnx", broken)
    with pytest.raises(ParityError, match="generator"):
        exporter.export(checkpoint, "words", tmp_path / "repository")
    assert not (tmp_path / "repository").exists()
