import json
from contextlib import nullcontext
from pathlib import Path
from shutil import copyfile, copytree, ignore_patterns

import numpy as np
import onnx
import pytest
import torch
from google.protobuf import text_format
from peft import LoraModel
from PIL import Image
from tritonclient.grpc import model_config_pb2

from export import build as exporter
from export.graphs import Part, run
from export.integers import (
    CHECKED,
    MEAN_TOLERANCE,
    PICTURES,
    CalibrationError,
    answers,
    quantize_throughout,
    requests,
)
from export.parity import ParityError, check, fp32_arithmetic, tolerances
from export.parts import head
from export.parts.head import example_inputs, split
from referent.core.bundle import Bundle, load_bundle, verify_files
from referent.core.contract import dims_of, dtype_of, part_name
from referent.core.packing import Bucket
from referent.core.processor import Processor
from referent.kinds import kind_of
from referent.modeling.checkpoint import (
    load_checkpoint,
    load_checkpoint_encoder,
    load_checkpoint_spec,
    save_checkpoint,
)
from referent.modeling.weights import load_llava
from tests.support.releases import publish_tiny
from tests.support.several import save_referents_checkpoint
from tests.support.tiny import MODEL_REPOSITORY
from tests.support.visual_prompts import SMALLEST_SHAPE, save_prompted_checkpoint


@pytest.fixture(scope="module")
def published(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the tiny model as versions 1 (fp32) and 2 (fp16)."""
    repository = tmp_path_factory.mktemp("repository")
    exporter.export(tiny_checkpoint, "tiny", repository, max_batch_size=4)
    exporter.export(tiny_checkpoint, "tiny", repository, dtype="fp16", max_batch_size=4)
    return repository


def test_what_is_exported_must_have_the_adapter(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LoraModel, "merge_and_unload", LoraModel.unload)  # the base without what was trained
    with pytest.raises(ParityError, match="differs by"):
        exporter.export(tiny_checkpoint, "tiny", tmp_path / "repository")
    assert not (tmp_path / "repository").exists()


def test_fp32_arithmetic_needs_no_fp32_weights(tiny_checkpoint: Path) -> None:
    model, spec = load_checkpoint(tiny_checkpoint)
    inputs = example_inputs(model, spec, 2, Bucket(64, 4))
    model.llava.half().float()  # weights that fp16 holds exactly
    exact = run(split(model), inputs)
    model.llava.half()
    before = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    with fp32_arithmetic(model):
        again = run(split(model), inputs)
    rounded = run(split(model), inputs)
    assert {name: parameter.data_ptr() for name, parameter in model.named_parameters()} == before
    error, control = ((x["hidden_states"] - exact["hidden_states"]).abs().max() for x in (again, rounded))
    assert error < control / 20


def test_half_precision_weights_are_loaded_as_stored(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model, spec = load_checkpoint(tiny_checkpoint)
    model.llava = model.llava.merge_and_unload().half()
    spec = spec.model_copy(update={"base": "base"})
    save_checkpoint(tmp_path, model, spec, tiny_checkpoint / "tokenizer.json")
    assert {p.dtype for p in load_checkpoint(tmp_path, dtype=None)[0].llava.parameters()} == {torch.float16}


def test_an_adapter_on_a_base_in_half_precision_is_merged_in_fp32(tiny_checkpoint: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    load_llava(tiny_checkpoint / "base").half().save_pretrained(half)
    copytree(tiny_checkpoint, tmp_path / "checkpoint", ignore=ignore_patterns("base"))
    spec = load_checkpoint_spec(tiny_checkpoint).model_copy(update={"base": str(half), "base_digest": None})
    (tmp_path / "checkpoint" / "referent.json").write_text(spec.model_dump_json())
    exporter.export(tmp_path / "checkpoint", "half", tmp_path / "repository", quick_parity=True)  # against the adapter
    bundle, _ = load_bundle(tmp_path / "repository", "half")
    assert bundle.training["parity"]["cases"] == ["batch 1, (64, 4)", "batch 2, (32, 2)"]


def test_versions_follow_one_another_and_their_files_verify(published: Path) -> None:
    first, _ = verify_files(published, "tiny", "1")
    second, digest = verify_files(published, "tiny")
    assert (first.version, first.dtype) == ("1", "fp32")
    assert (second.version, second.dtype) == ("2", "fp16")
    assert digest in (published / "tiny" / "config.pbtxt").read_text()
    assert not list(published.glob(".publish-*"))


def test_older_versions_stay_and_say_how_to_bring_them_back(tmp_path: Path) -> None:
    repository, seen = tmp_path / "repository", []
    for _ in range(2):
        publish_tiny(repository, "other")
        seen.append((repository / "other" / "config.pbtxt").read_text())
    for model in ("other", *load_bundle(repository, "other")[0].parts):
        assert sorted(path.name for path in (repository / model).iterdir() if path.is_dir()) == ["1", "2"]
    assert [(repository / "other" / v / "config.pbtxt").read_text() for v in "12"] == seen


def test_rotary_embeddings_are_one_node_each_in_both_precisions(published: Path) -> None:
    for version in ("1", "2"):
        graph = onnx.load(published / "tiny_language_model" / version / "model.onnx").graph
        assert sum(node.op_type == "RotaryEmbedding" for node in graph.node) == 4  # queries and keys of two layers


def test_what_a_gpu_needs_is_in_the_configs(published: Path) -> None:
    model = config_of(published, "tiny_language_model")
    settings = {key: model.parameters[key].string_value for key in ("arena_extend_strategy", "cudnn_conv_algo_search")}
    assert settings == {"arena_extend_strategy": "1", "cudnn_conv_algo_search": "1"}
    assert model.parameters["session.use_device_allocator_for_initializers"].string_value == "1"
    assert [(w.batch_size, list(w.inputs["input_ids"].dims)) for w in model.model_warmup] == [
        (1, [16]), (1, [32]), (1, [64]), (4, [64]),
    ]  # fmt: skip
    assert [w.batch_size for w in config_of(published, "tiny_vision_encoder").model_warmup] == [1, 4]


def config_of(repository: Path, model: str) -> model_config_pb2.ModelConfig:
    return text_format.Parse((repository / model / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def declared(tensors: object) -> dict[str, tuple[str, list[int]]]:
    return {t.name: (model_config_pb2.DataType.Name(t.data_type), list(t.dims)) for t in tensors}


def contract(tensors: object, bundle: Bundle, hidden_size: int) -> dict[str, tuple[str, list[int]]]:
    sizes = kind_of(bundle).sizes(bundle) | {"D": hidden_size}
    return {t.name: ("TYPE_" + dtype_of(t, bundle.dtype), dims_of(t, sizes)) for t in tensors}


def assert_configs_are_the_contract(repository: Path, name: str, hidden_size: int) -> None:
    bundle, digest = load_bundle(repository, name)
    kind = kind_of(bundle)
    ensemble = config_of(repository, name)
    assert declared(ensemble.input) == contract(kind.inputs, bundle, hidden_size)
    assert declared(ensemble.output) == contract(kind.outputs(bundle), bundle, hidden_size)
    assert ensemble.parameters["digest"].string_value == digest
    assert {step.model_name: step.model_version for step in ensemble.ensemble_scheduling.step} == bundle.parts
    for step in kind.steps:
        part = config_of(repository, part_name(name, step))
        assert part.backend == "onnxruntime"
        assert part.HasField("dynamic_batching")
        assert all(group.kind == group.KIND_AUTO for group in part.instance_group)
        assert declared(part.input) == contract(step.inputs, bundle, hidden_size)
        assert declared(part.output) == contract(step.outputs, bundle, hidden_size)
        graph = onnx.load(
            repository / part_name(name, step) / bundle.version / "model.onnx", load_external_data=False
        ).graph
        for declaration, values in ((part.input, graph.input), (part.output, graph.output)):
            onnx_types = {
                value.name: (
                    value.type.tensor_type.elem_type,
                    [d.dim_value or -1 for d in value.type.tensor_type.shape.dim],
                )
                for value in values
            }
            assert onnx_types == {
                t.name: (
                    onnx.TensorProto.DataType.Value(
                        {"TYPE_FP32": "FLOAT", "TYPE_FP16": "FLOAT16"}.get(
                            model_config_pb2.DataType.Name(t.data_type),
                            model_config_pb2.DataType.Name(t.data_type).removeprefix("TYPE_"),
                        )
                    ),
                    [-1, *t.dims],
                )
                for t in declaration
            }


def test_visual_prompts_are_in_the_vision_encoder(tiny_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = save_prompted_checkpoint(tmp_path / "prompted", tiny_checkpoint, shape=SMALLEST_SHAPE)
    exporter.export(checkpoint, "prompted", tmp_path / "repository")  # and held against PyTorch
    assert_configs_are_the_contract(tmp_path / "repository", "prompted", 64)
    encoder = config_of(tmp_path / "repository", "prompted_vision_encoder")
    assert declared(encoder.input) == {
        "image": ("TYPE_UINT8", [28, 28, 3]),
        "detector_image": ("TYPE_UINT8", [64, 64, 3]),
        "detector_frame": ("TYPE_INT32", [4]),
    }
    assert set(encoder.model_warmup[0].inputs) == {"image", "detector_image", "detector_frame"}


def test_config_is_the_contract_is_the_graph(published: Path) -> None:
    assert_configs_are_the_contract(published, "tiny", hidden_size=64)


def test_integers_throughout_answer_alike_and_each_row_by_itself(
    published: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    steps = kind_of(load_bundle(published, "tiny")[0]).steps
    files = []
    for step in steps:
        (tmp_path / step.suffix).mkdir()
        source = published / part_name("tiny", step) / "1" / "model.onnx"
        files.append(Path(copyfile(source, tmp_path / step.suffix / "model.onnx")))
    sizes = [file.stat().st_size for file in files]
    model, spec = load_checkpoint(tiny_checkpoint)
    inputs = [example_inputs(model, spec, 1, Bucket(16, 1), seed) for seed in range(PICTURES + CHECKED)]
    given = [{name: tensor.numpy() for name, tensor in each.items()} for each in inputs]
    assert 0 < quantize_throughout(files, steps, head.LARGE, "boxes", given) < MEAN_TOLERANCE
    assert [file.stat().st_size < size for file, size in zip(files, sizes, strict=True)] == [True, True, False]
    batch = {name: np.concatenate([each[name] for each in given[:8]]) for name in given[0]}
    [together] = answers(files, steps, [batch])
    for index, alone in enumerate(answers(files, steps, given[:8])):
        np.testing.assert_allclose(alone["boxes"][0], together["boxes"][index], atol=1e-5)
    (files[1].parent / "model.onnx.data").touch()
    with pytest.raises(CalibrationError, match=r"language_model has weights in model\.onnx\.data: --weights int8"):
        quantize_throughout(files, steps, head.LARGE, "boxes", given)


def test_too_few_pictures_for_ranges_are_counted(tiny_checkpoint: Path, tmp_path: Path) -> None:
    rows = []
    for index in range(3):
        Image.new("RGB", (28, 28), (index, 0, 0)).save(tmp_path / f"{index}.png")
        for text in ("cup", "plate"):
            record = {"id": f"{index}-{text}", "image": f"{index}.png", "width": 28, "height": 28, "expression": text}
            rows.append(json.dumps(record | {"box_xyxy": [1, 1, 9, 9]}))
    (tmp_path / "train.jsonl").write_text("\n".join(rows) + "\n")
    spec = load_checkpoint_spec(tiny_checkpoint)
    processor = Processor(spec, load_checkpoint_encoder(tiny_checkpoint, spec), kind_of(spec))
    with pytest.raises(CalibrationError, match=r"train.jsonl has 3 pictures: give records with at least 64"):
        requests(tmp_path / "train.jsonl", tmp_path, processor)


def test_what_integers_cannot_do_is_refused_before_anything_is_computed(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "none.jsonl").touch()
    given = ["--int8", str(tmp_path / "none.jsonl"), "--images", str(tmp_path), "--work", str(tmp_path / "work")]
    command = [str(tiny_checkpoint), "--name", "tiny", "--to", str(tmp_path / "repository"), *given]
    with pytest.raises(SystemExit, match="has 0 pictures: give records with at least 64"):
        exporter.main(command)
    monkeypatch.setattr(exporter, "EXTERNAL_DATA_BYTES", 100)
    with pytest.raises(SystemExit, match=r"for small models, not for 0\.0 GB: take --weights int8"):
        exporter.main(command)
    assert not (tmp_path / "work").exists()


def test_graphs_tell_nothing_of_the_machine(published: Path) -> None:
    for file in [*published.rglob("*.onnx"), *MODEL_REPOSITORY.rglob("*.onnx")]:
        assert b"site-packages" not in file.read_bytes(), file


def test_the_shipped_configs_are_the_contract() -> None:
    assert_configs_are_the_contract(MODEL_REPOSITORY, "mini", hidden_size=256)


def test_a_failed_parity_publishes_nothing(
    tiny_checkpoint: Path, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(part: Part, tensors: object, dtype: str, file: Path, *others: object) -> None:
        copyfile(published / part_name("tiny", part.step) / "1" / "model.onnx", file)
        if part.step.suffix == "box_head":
            model = onnx.load(file)
            weights = next(t for t in model.graph.initializer if len(t.dims) == 2)
            weights.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weights) * 1.05, weights.name))
            onnx.save(model, file)

    monkeypatch.setattr(exporter, "export_onnx", broken)
    with pytest.raises(ParityError, match="box_head"):
        exporter.export(tiny_checkpoint, "tiny", tmp_path / "repository")
    assert not (tmp_path / "repository").exists()


def test_check_fails_on_nan_and_names_the_tensor() -> None:
    reference = {"boxes": torch.zeros(1, 4)}
    with pytest.raises(ParityError, match="boxes differs by nan"):
        check("case", reference, {"boxes": torch.full((1, 4), torch.nan)}, tolerances("fp32", head))


def test_every_referent_is_exported_in_half_precision(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """In full precision it is served by tests/system/test_referents.py."""
    save_referents_checkpoint(tiny_checkpoint, tmp_path / "checkpoint")
    exporter.export(tmp_path / "checkpoint", "several", tmp_path / "repository", dtype="fp16")
    config = config_of(tmp_path / "repository", "several")
    served = {output.name: list(output.dims) for output in config.output}
    assert served == {"boxes": [-1, 64, 4], "scores": [-1, 64], "presence": [-1], "heatmap": [-1, 2, 2]}


@pytest.mark.parametrize(("rows", "passes"), [(0, True), (2, True), (3, False)])
def test_a_tie_may_fall_otherwise_in_one_row_of_ten(rows: int, passes: bool) -> None:
    expected, actual = torch.zeros(2, 10, 3, 4), torch.zeros(2, 10, 3, 4)
    actual.flatten(0, 1)[:rows, 1] = 0.5
    with nullcontext() if passes else pytest.raises(ParityError, match="boxes differs"):
        check("head", {"boxes": expected}, {"boxes": actual}, lambda name, reference: 1e-4, {"boxes"})
    with nullcontext() if rows == 0 else pytest.raises(ParityError):  # of other outputs every row must agree
        check("head", {"boxes": expected}, {"boxes": actual}, lambda name, reference: 1e-4)
