"""LLaVA-1.5-7B's shape on one GPU, in twelve parts of at most eight minutes: `--part all` or the names of some.

    python -m benchmarks.seven_billion WORK [--part floor vision ...] [--layers 32]

Random weights take the same time as trained ones. Each part creates what it needs unless WORK has it already (a graph
of 13 GB takes minutes to write; 39 GB of disk in all), and writes its results at once to `seven_billion_PART.json`.
Times are compared with the card's floor: operations divided by the rate at which it multiplies matrices in the same
run, or bytes by the rate at which it copies them. Without a GPU it runs on the CPU with `--tiny`, only to test itself.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from transformers import LlavaForConditionalGeneration

from benchmarks.lib.device import DEVICE, ON_GPU, Chain, bound, free, on_device, pytorch, session_of
from benchmarks.lib.llava_bench import Bench
from benchmarks.lib.measuring import Report, Row, arguments_of
from benchmarks.lib.operations import language_operations, vision_operations
from benchmarks.lib.random_llava import LAYERS, llava_config
from benchmarks.lib.service import Ensemble, Subject, step_times
from export.graphs import Part, Tensors
from export.parts import generator, head
from export.publish import publish
from referent.core.bundle import TOKENIZER_FILE, BundleError, load_bundle
from referent.core.contract import VISION_ENCODER
from referent.core.packing import Bucket
from referent.kinds.generator import GENERATOR
from referent.kinds.head import LANGUAGE_MODEL, Head
from referent.modeling.grounding import GroundingModel
from runtime.launcher import TritonServer

NAME = "llava-7b"
PAST, DECODED = 1024, 4  # tokens of a pass of the generator
REPORT_MEMORY = "REFERENT_REPORT_MEMORY"  # has runtime/backends/onnxruntime say where tensors are
Tables = Iterator[tuple[str, list[Row]]]


# --- the parts -------------------------------------------------------------------------------------------------------


def floor(bench: Bench) -> Tables:
    """The card's best rates, and the time that a pass would take at these."""
    yield "the card", [{"TFLOP/s": bench.rate / 1e12, "GB/s": bench.bandwidth / 1e9}]
    rows = []
    for bucket in bench.buckets:
        for what, operations in (
            (VISION_ENCODER.suffix, vision_operations(bench.config)),
            (LANGUAGE_MODEL.suffix, language_operations(bench.config, bucket)),
        ):
            rows.append({"step": what, "expressions": bucket.expressions, "TFLOP": operations / 1e12})
            rows[-1]["floor ms"] = 1000 * operations / bench.rate
    yield "floors, batch 1", rows


def chain(bench: Bench) -> Tables:
    """All steps one after another on the device, and the same recorded and replayed (CUDA graphs)."""
    files = [bench.graph(step.suffix) for step in Head.steps]
    free()
    ways = {"ONNX Runtime": dict[str, str](), "ONNX Runtime, CUDA graphs": {"enable_cuda_graph": "1"}}
    rows: list[Row] = []
    for way, parameters in ways.items() if ON_GPU else list(ways.items())[:1]:
        for bucket, arrays in zip(bench.buckets, requests(bench), strict=True):
            tensors = {name: on_device(torch.from_numpy(array)) for name, array in arrays.items()}
            sizes = {"batch": 1, "tokens": bucket.tokens, "slots": bucket.expressions}
            sizes["hidden"] = bench.config.text_config.hidden_size
            paths = {way: Chain(files, tensors, sizes, **parameters)}
            rows += bench.compared(paths, bench.floor_ms(bucket), expressions=bucket.expressions)
            del paths
            free()
        yield "milliseconds a pass", rows  # before the next way, which may fail
        yield "goals on an H200", verdicts(rows)


def ensemble(bench: Bench) -> Tables:
    """The ensemble with one expression and with eight, through Triton with the backend in Python."""
    subject = published(bench)
    with TritonServer(subject.repository, [NAME]) as server, Ensemble(subject, server.grpc_url) as asked:
        rows: list[Row] = []
        for bucket, arrays in zip(bench.buckets, requests(bench), strict=True):
            way = {"Triton ensemble, gRPC": lambda arrays=arrays: asked(arrays)}
            rows += bench.compared(way, bench.floor_ms(bucket), expressions=bucket.expressions)
        yield "milliseconds a pass", rows
        yield "Triton's own clock, mean of all requests", step_times(subject, server.grpc_url)
    yield "goals on an H200", verdicts(rows)


def device_features(bench: Bench) -> Tables:
    """Whether image features stay on the device between the steps: the backend says where each tensor is."""
    subject = published(bench)
    log = bench.work / "tritonserver.log"
    log.unlink(missing_ok=True)
    os.environ[REPORT_MEMORY] = "1"
    try:
        server = TritonServer(subject.repository, [NAME], log_path=log)
        with server, Ensemble(subject, server.grpc_url) as asked:
            for arrays in requests(bench):
                asked(arrays)
    finally:
        del os.environ[REPORT_MEMORY]
    found = re.findall(
        r"memory of (input|output) (image_features|hidden_states) of \S+: (\w+) (0x[0-9a-f]+)", log.read_text()
    )
    rows = [
        {"tensor": tensor, "seen as": side, "on": place, "first address": address,
         "met": "pass" if place == DEVICE else "falls short"}
        for (side, tensor, place), address in {each[:3]: each[3] for each in reversed(found)}.items()
    ]  # fmt: skip
    seen = {(row["tensor"], row["seen as"]) for row in rows}
    if not seen >= {("image_features", "input"), ("image_features", "output")}:
        raise RuntimeError(f"{log} does not say where image features were: the backend is not ours")
    yield "where tensors are between the steps", rows


def generator_prefill(bench: Bench) -> Tables:
    """A generator's prefill of a whole prompt."""
    yield from generator_against_pytorch(bench, bench.buckets[0].tokens, 0)


def generator_pass(bench: Bench) -> Tables:
    """A generator's pass over a few tokens, which reads all weights and the cache."""
    past = PAST if not bench.tiny else 32
    yield from generator_against_pytorch(bench, DECODED, past)


# --- what they consist of --------------------------------------------------------------------------------------------


class StepTrial(NamedTuple):
    """Inputs of a step, what PyTorch gives in fp16, and the least that it may take."""

    key: Row
    inputs: Tensors
    expected: torch.Tensor
    floor_ms: float


def step_against_pytorch(bench: Bench, step: str, cases: list[tuple[int, int]], weights: str | None = None) -> Tables:
    """A step in PyTorch bf16, then as a graph; `cases` are batches and places in the buckets."""
    model = bench.model()
    part = next(part for part in head.split(model) if part.step.suffix == step)
    file, trials = bench.graph(step, weights, model), []
    for batch, place in cases:
        bucket = bench.buckets[place]
        inputs = bench.examples(model, part, head.example_inputs(model, bench.spec(), batch, bucket))
        operations = (
            vision_operations(bench.config)
            if step == VISION_ENCODER.suffix
            else language_operations(bench.config, bucket)
        )
        key = {"step": step, "batch": batch, "expressions": bucket.expressions}
        expected = pytorch(part, inputs)[part.outputs[0].name].float().cpu()
        trials.append(StepTrial(key, inputs, expected, 1000 * batch * operations / bench.rate))
    yield f"{step} in PyTorch", in_bf16(bench, part, trials)
    del model, part
    yield from as_graph(bench, file, trials, part_output=0)


def generator_against_pytorch(bench: Bench, tokens: int, past: int) -> Tables:
    """The decoder's graph with so many new tokens and so long a past, for one row and for eight."""
    model = bench.model(text=True)
    part = generator.split(model)[1]
    file, trials = bench.graph(GENERATOR.suffix, None, model), []
    language_model, text = model.base.model.language_model, model.base.config.text_config
    layers, words = (
        sum(p.numel() for p in module.parameters()) for module in (language_model.layers, model.base.lm_head)
    )
    cached = 4 * past * text.num_hidden_layers * text.num_key_value_heads * language_model.layers[0].self_attn.head_dim
    for count in (1, 8):
        inputs = generator.example_inputs(model, bench.spec(text=True), count, Bucket(tokens, 1))
        if past:
            caches = [tensor.name for tensor in part.step.inputs if "P" in tensor.shape]
            shape = (*inputs[caches[0]].shape[:2], past, inputs[caches[0]].shape[3])
            inputs |= {name: torch.randn(shape) for name in caches}
            inputs["mask"] = torch.ones(count, tokens, past + tokens).tril(past).bool()
            inputs["position_ids"] += past
        given = bench.examples(model, part, inputs)
        chosen = given["select"].numel()  # tokens whose successors are wanted
        by_rate = 2 * (layers * tokens * count + words * chosen) / bench.rate
        by_bandwidth = (2 * (layers + words) + count * cached) / bench.bandwidth
        key = {"rows": count, "tokens": tokens, "past": past}
        expected = pytorch(part, given)["logprob"].float().cpu()
        trials.append(StepTrial(key, given, expected, 1000 * max(by_rate, by_bandwidth)))
    yield "in PyTorch", in_bf16(bench, part, trials)
    place = [tensor.name for tensor in part.outputs].index("logprob")
    del model, part, language_model
    yield from as_graph(bench, file, trials, place)


def in_bf16(bench: Bench, part: Part, trials: list[StepTrial]) -> list[Row]:
    """PyTorch's times, with the part's weights in bf16 from now on."""
    for parameter in part.module.parameters():
        parameter.data = parameter.data.bfloat16()
    rows: list[Row] = []
    for key, inputs, _, floor_ms in trials:
        given = {name: x.bfloat16() if x.is_floating_point() else x for name, x in inputs.items()}
        rows += bench.compared({"PyTorch sdpa, bf16": partial(pytorch, part, given)}, floor_ms, **key)
    return rows


def as_graph(bench: Bench, file: Path, trials: list[StepTrial], part_output: int) -> Tables:
    """ONNX Runtime's times, and its answers against PyTorch's."""
    free()
    session, rows, differences = session_of(file), [], []
    for key, inputs, expected, floor_ms in trials:
        binding = bound(session, inputs)
        ways = {f"ONNX Runtime, {file.parent.name}": partial(session.run_with_iobinding, binding)}
        rows += bench.compared(ways, floor_ms, **key)
        found = torch.from_numpy(binding.copy_outputs_to_cpu()[part_output]).float()
        largest, extent = float((found - expected).abs().max()), float(expected.max() - expected.min())
        differences.append(key | {"largest difference": largest, "range": extent})
    yield "as a graph", rows
    yield "graph against PyTorch fp16", differences


def published(bench: Bench) -> Subject:
    """The model in a repository of its own."""
    repository = bench.folder / "repository"
    try:
        load_bundle(repository, NAME)
    except BundleError:
        spec = bench.spec()
        folders = {}
        for step in Head.steps:
            source = bench.graph(step.suffix).parent
            linked = repository / f".{step.suffix}"
            shutil.rmtree(linked, ignore_errors=True)  # of a run that was killed
            folders[step.suffix] = shutil.copytree(source, linked, copy_function=os.link)
        sizes = {"D": bench.config.text_config.hidden_size}
        publish(repository, NAME, spec, folders, bench.tokenizer_file, dtype="fp16", has_scores=True, sizes=sizes,
                max_batch_size=8)  # fmt: skip
    return Subject(repository, NAME)


def requests(bench: Bench) -> list[dict[str, np.ndarray]]:
    """The ensemble's tensors for one expression and for eight."""
    with torch.device("meta"):
        llava = LlavaForConditionalGeneration(llava_config(1, bench.tiny))
    model = GroundingModel(llava, None)
    cases = [head.example_inputs(model, bench.spec(), 1, bucket) for bucket in bench.buckets]
    return [{name: tensor.numpy() for name, tensor in case.items()} for case in cases]


def verdicts(rows: list[Row]) -> list[Row]:
    """The goals for the whole model: latency with one expression, and what eight in a pass gain over eight passes."""
    found: list[Row] = []
    for path in dict.fromkeys(row["path"] for row in rows):
        own = {row["expressions"]: row["p50"] for row in rows if row["path"] == path}
        for what, goal, value, met in (
            ("ms, batch 1", "<= 17.5", own[1], own[1] <= 17.5),
            ("8 expressions against 8 passes", ">= 4.5x", 8 * own[1] / own[8], 8 * own[1] / own[8] >= 4.5),
        ):
            row = {"path": path, "what": what, "goal": goal, "found": value}
            found.append(row | {"met": "pass" if met else "falls short"})
    return found


language = partial(step_against_pytorch, step=LANGUAGE_MODEL.suffix)
PARTS: dict[str, Callable[[Bench], Tables]] = {
    "floor": floor,
    "vision": partial(step_against_pytorch, step=VISION_ENCODER.suffix, cases=[(1, 0), (8, 0)]),
    "language_one": partial(language, cases=[(1, 0)]),
    "language_eight": partial(language, cases=[(1, 1)]),
    "language_batch": partial(language, cases=[(4, 0)]),
    "language_int8": partial(language, cases=[(1, 0), (1, 1)], weights="int8"),
    "language_int4": partial(language, cases=[(1, 0), (1, 1)], weights="int4"),
    "chain": chain,
    "ensemble": ensemble,
    "device_features": device_features,
    "generator_prefill": generator_prefill,
    "generator_pass": generator_pass,
}


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument(
        "--part", nargs="+", choices=["all", *PARTS], default=["all"], metavar="PART", help=", ".join(PARTS)
    )
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--tiny", action="store_true", help="tiny widths: to see that it runs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--model-repository", type=Path, default=Path("model_repository"), help="of mini's tokenizer")
    arguments = parser.parse_args()
    if not (ON_GPU or arguments.tiny):
        parser.error("there is no GPU here: --tiny runs the same on the CPU, as a test of the script")
    tokenizer = arguments.model_repository / "mini" / load_bundle(arguments.model_repository, "mini")[0].version
    bench = Bench(
        arguments.work, arguments.layers, arguments.tiny, arguments.rounds, arguments.calls, tokenizer / TOKENIZER_FILE
    )
    for name in PARTS if "all" in arguments.part else arguments.part:
        print(name)
        report = Report(f"seven_billion_{name}", arguments.out)
        for title, rows in PARTS[name](bench):
            report.add(title, rows)
        free()


if __name__ == "__main__":
    main()
