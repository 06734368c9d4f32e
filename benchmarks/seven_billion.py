"""LLaVA-1.5-7B's shape on one GPU, in twelve parts of at most eight minutes: `--part all` or the names of some.

    python -m benchmarks.seven_billion WORK [--part floor vision ...] [--layers 32]

Random weights take the same time as trained ones. Each part creates what it needs unless WORK has it already (a graph
of 13 GB takes minutes to write; 35 GB of disk in all), and writes its results at once to `seven_billion_PART.json`.
Times are compared with the card's floor: operations divided by the rate at which it multiplies matrices in the same
run, or bytes by the rate at which it reads them. Without a GPU it runs on the CPU with `--tiny`, only to test itself.
"""

import gc
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import LlavaForConditionalGeneration

from benchmarks.lib.measuring import Report, Row, alternate, arguments_of, flat, median, summary
from benchmarks.lib.random_llava import LAYERS, llava_config, llava_spec
from benchmarks.lib.service import Ensemble, Subject, step_times
from export.graphs import Part, Tensors, export_onnx, quantize, run, stand_ins
from export.parts import generator, head
from export.publish import publish
from export.quantize import ROUNDINGS
from referent.core.bundle import TOKENIZER_FILE, BundleError, load_bundle
from referent.core.contract import VISION_ENCODER
from referent.core.packing import Bucket
from referent.kinds.generator import GENERATOR
from referent.kinds.head import LANGUAGE_MODEL, Head
from referent.modeling.checkpoint import CheckpointSpec
from referent.modeling.grounding import GroundingModel
from referent.modeling.heads import BoxHead
from runtime.launcher import TritonServer

NAME = "llava-7b"
MATRIX, COPIED_BYTES = 8192, 2**31  # the yardsticks: side of a square matrix, bytes of a copy
ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
NUMPY = {torch.uint8: np.uint8, torch.int64: np.int64, torch.float16: np.float16, torch.float32: np.float32,
         torch.bool: np.bool_}  # fmt: skip
FUSED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH]
BUCKETS, TINY_BUCKETS = (Bucket(640, 1), Bucket(832, 8)), (Bucket(96, 1), Bucket(192, 8))
PAST, DECODED = 1024, 4  # tokens of a pass of the generator
REPORT_MEMORY = "REFERENT_REPORT_MEMORY"  # has runtime/backends/onnxruntime say where tensors are
Tables = Iterator[tuple[str, list[Row]]]


@dataclass
class Bench:
    """What the parts share."""

    work: Path
    layers: int
    tiny: bool
    rounds: int
    calls: int
    tokenizer_file: Path

    @cached_property
    def buckets(self) -> tuple[Bucket, Bucket]:
        """For one expression and for eight."""
        return TINY_BUCKETS if self.tiny else BUCKETS

    def spec(self, text: bool = False) -> CheckpointSpec:
        """Of the model."""
        return llava_spec(llava_config(self.layers, self.tiny), self.buckets, text)

    def model(self, text: bool = False) -> GroundingModel:
        """With random fp16 weights, on the device."""
        torch.manual_seed(0)
        config = llava_config(self.layers, self.tiny)
        with torch.device(DEVICE):
            llava = LlavaForConditionalGeneration._from_config(config, dtype=torch.float16)
            box_head = None if text else BoxHead(config.text_config.hidden_size)
        return GroundingModel(llava, box_head).eval().to(DEVICE)

    def graph(self, step: str, weights: str | None = None, model: GroundingModel | None = None) -> Path:
        """The exported graph of a step, made where it is not there."""
        folder = self.work / f"{self.layers}-layers" / "-".join(filter(None, (step, weights)))
        if not folder.exists():
            unfinished = folder.with_suffix(".partial")
            shutil.rmtree(unfinished, ignore_errors=True)
            if weights:
                quantize(self.graph(step, None, model), unfinished / "model.onnx", ROUNDINGS[weights])
            else:
                self._trace(step, model or self.model(step == GENERATOR.suffix), unfinished / "model.onnx")
            unfinished.rename(folder)
        return folder / "model.onnx"

    def _trace(self, step: str, model: GroundingModel, file: Path) -> None:
        text = step == GENERATOR.suffix
        kind: Any = generator if text else head
        part = next(part for part in kind.split(model) if part.step.suffix == step)
        inputs = self.examples(model, part, kind.example_inputs(model, self.spec(text), 2, self.buckets[1]))
        with stand_ins(model.llava, torch.float16) as matrices:
            export_onnx(part, inputs, "fp16", file, matrices)

    def examples(self, model: GroundingModel, part: Part, inputs: Tensors) -> Tensors:
        """The inputs of a part; those that another part computes are random."""
        text = model.base.config.text_config
        batch = len(inputs["input_ids"])
        slots = inputs["loc_positions" if "loc_positions" in inputs else "select"].shape[1]
        features = self.spec().image_tokens
        random = {"image_features": (batch, features), "hidden_states": (batch, slots)}
        made = {name: torch.randn(*shape, text.hidden_size) for name, shape in random.items()}
        return {t.name: on_device((inputs | made)[t.name]) for t in part.step.inputs}

    def compared(self, paths: Mapping[str, Callable[[], object]], floor_ms: float, **key: object) -> list[Row]:
        """A row a path, with its time over the floor."""
        times = alternate({name: waiting(call) for name, call in paths.items()}, self.rounds, self.calls)
        return [
            {**key, "path": path} | summary(flat(blocks)) | {"floor ms": floor_ms, "of it": floor_ms / median(blocks)}
            for path, blocks in times.items()
        ]

    @cached_property
    def rate(self) -> float:
        """Operations a second of an fp16 matrix product, the best of three blocks."""
        side = MATRIX if ON_GPU else MATRIX // 32
        a, b = (torch.randn(side, side, device=DEVICE).half() for _ in range(2))
        times = alternate({"product": waiting(lambda: a @ b)}, rounds=3, calls=10)
        return 2 * side**3 / min(flat(times["product"])) * 1000

    @cached_property
    def bandwidth(self) -> float:
        """Bytes a second that are read and written, the best of three blocks."""
        size = COPIED_BYTES if ON_GPU else COPIED_BYTES // 256
        a, b = (torch.zeros(size // 2, dtype=torch.int8, device=DEVICE) for _ in range(2))
        times = alternate({"copy": waiting(lambda: b.copy_(a))}, rounds=3, calls=10)
        return size / min(flat(times["copy"])) * 1000


# --- the parts -------------------------------------------------------------------------------------------------------


def floor(bench: Bench) -> Tables:
    """The card's best rates, and the time that a pass would take at these."""
    yield "the card", [{"TFLOP/s": bench.rate / 1e12, "GB/s": bench.bandwidth / 1e9}]
    rows = []
    for bucket in bench.buckets:
        for what, operations in (
            (VISION_ENCODER.suffix, vision_operations(bench)),
            (LANGUAGE_MODEL.suffix, language_operations(bench, bucket)),
        ):
            rows.append({"step": what, "expressions": bucket.expressions, "TFLOP": operations / 1e12})
            rows[-1]["floor ms"] = 1000 * operations / bench.rate
    yield "floors, batch 1", rows


def vision(bench: Bench) -> Tables:
    """The vision encoder, PyTorch bf16 and ONNX Runtime."""
    yield from step_against_pytorch(bench, VISION_ENCODER.suffix, [(1, 0), (8, 0)])


def language_one(bench: Bench) -> Tables:
    """The language model with one expression."""
    yield from step_against_pytorch(bench, LANGUAGE_MODEL.suffix, [(1, 0)])


def language_eight(bench: Bench) -> Tables:
    """The language model with eight expressions in a row."""
    yield from step_against_pytorch(bench, LANGUAGE_MODEL.suffix, [(1, 1)])


def language_batch(bench: Bench) -> Tables:
    """The language model with four pictures in a batch."""
    yield from step_against_pytorch(bench, LANGUAGE_MODEL.suffix, [(4, 0)])


def language_int8(bench: Bench) -> Tables:
    """The language model with weights of eight bits."""
    yield from step_against_pytorch(bench, LANGUAGE_MODEL.suffix, [(1, 0), (1, 1)], "int8")


def language_int4(bench: Bench) -> Tables:
    """The language model with weights of four bits."""
    yield from step_against_pytorch(bench, LANGUAGE_MODEL.suffix, [(1, 0), (1, 1)], "int4")


def chain(bench: Bench) -> Tables:
    """All steps one after another on the device, and the same recorded and replayed (CUDA graphs)."""
    files = [bench.graph(step.suffix) for step in Head.steps]
    model = bench.model()
    cases = [head.example_inputs(model, bench.spec(), 1, bucket) for bucket in bench.buckets]
    hidden = model.base.config.text_config.hidden_size
    del model
    free()
    rows: list[Row] = []
    for bucket, inputs in zip(bench.buckets, cases, strict=True):
        tensors = {name: on_device(tensor) for name, tensor in inputs.items()}
        sizes = {"batch": 1, "tokens": bucket.tokens, "slots": bucket.expressions, "hidden": hidden}
        paths: dict[str, Callable[[], object]] = {"ONNX Runtime": Chain(files, tensors, sizes)}
        if ON_GPU:
            paths["ONNX Runtime, CUDA graphs"] = Chain(files, tensors, sizes, enable_cuda_graph="1")
        operations = vision_operations(bench) + language_operations(bench, bucket)
        rows += bench.compared(paths, 1000 * operations / bench.rate, expressions=bucket.expressions)
        del paths
        free()
    yield "milliseconds a pass", rows
    yield "goals on an H200", verdicts(rows)


def ensemble(bench: Bench) -> Tables:
    """The ensemble with one expression and with eight, through Triton with the backend in Python."""
    subject = published(bench)
    with TritonServer(subject.repository, [NAME]) as server, Ensemble(subject, server.grpc_url) as asked:
        rows: list[Row] = []
        for bucket, arrays in zip(bench.buckets, requests(bench), strict=True):
            operations = vision_operations(bench) + language_operations(bench, bucket)
            way = {"Triton ensemble, gRPC": lambda arrays=arrays: asked(arrays)}
            rows += bench.compared(way, 1000 * operations / bench.rate, expressions=bucket.expressions)
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
    if {(row["tensor"], row["seen as"]) for row in rows} < {("image_features", "input"), ("image_features", "output")}:
        raise RuntimeError(f"{log} does not say where image features were: the backend is not ours")
    yield "where tensors are between the steps", rows


def generator_prefill(bench: Bench) -> Tables:
    """A generator's prefill of a whole prompt."""
    yield from generator_against_pytorch(bench, bench.buckets[0].tokens, 0)


def generator_pass(bench: Bench) -> Tables:
    """A generator's pass over a few tokens, which reads all weights and the cache."""
    past = PAST if not bench.tiny else 32
    yield from generator_against_pytorch(bench, DECODED, past)


PARTS: dict[str, Callable[[Bench], Tables]] = {
    part.__name__: part
    for part in (
        floor, vision, language_one, language_eight, language_batch, language_int8, language_int4, chain, ensemble,
        device_features, generator_prefill, generator_pass,
    )
}  # fmt: skip


# --- what they consist of --------------------------------------------------------------------------------------------


class StepTrial(NamedTuple):
    """Inputs of a step, what PyTorch gives in fp16, and the least that it may take."""

    key: Row
    inputs: Tensors
    expected: torch.Tensor
    floor_ms: float


def step_against_pytorch(bench: Bench, step: str, cases: list[tuple[int, int]], weights: str | None = None) -> Tables:
    """A step in PyTorch bf16 with fused attention, then as a graph; `cases` are batches and places in the buckets."""
    model = bench.model()
    part = next(part for part in head.split(model) if part.step.suffix == step)
    file, trials = bench.graph(step, weights, model), []
    for batch, place in cases:
        bucket = bench.buckets[place]
        inputs = bench.examples(model, part, head.example_inputs(model, bench.spec(), batch, bucket))
        operations = vision_operations(bench) if step == VISION_ENCODER.suffix else language_operations(bench, bucket)
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
    weights = sum(p.numel() for p in language_model.parameters()) + model.base.lm_head.weight.numel()
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
        by_rate = 2 * weights * tokens * count / bench.rate
        by_bandwidth = (2 * weights + count * cached) / bench.bandwidth
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


@torch.inference_mode()
def pytorch(part: Part, inputs: Tensors) -> Tensors:
    """A part's outputs, in the dtype of its module."""
    dtype = next(p.dtype for p in part.module.parameters() if p.ndim > 1)
    given = {name: x.to(dtype) if x.is_floating_point() else x for name, x in inputs.items()}
    with sdpa_kernel(FUSED):
        return run([part], given)


def session_of(file: Path, **options: str) -> onnxruntime.InferenceSession:
    """On the GPU where there is one."""
    if ON_GPU:
        onnxruntime.preload_dlls()
    providers: list[Any] = [(CUDA, options), CPU] if ON_GPU else [CPU]
    session = onnxruntime.InferenceSession(file, providers=providers)
    if ON_GPU and session.get_providers()[0] != CUDA:
        raise RuntimeError("ONNX Runtime has no CUDA here: install onnxruntime-gpu in place of onnxruntime")
    return session


def bound(session: onnxruntime.InferenceSession, tensors: Tensors) -> Any:
    """Inputs where they are, outputs on the device."""
    binding = session.io_binding()
    for node in session.get_inputs():
        _bind(binding.bind_input, node.name, tensors[node.name])
    for node in session.get_outputs():
        binding.bind_output(node.name, DEVICE)
    return binding


class Chain:
    """The exported steps one after another with I/O binding: every tensor stays on the device, in memory of its own."""

    def __init__(self, files: list[Path], inputs: Tensors, sizes: Mapping[str, int], **options: str) -> None:
        self.tensors, self._calls = dict(inputs), []
        for file in files:
            session = session_of(file, **options)
            binding = session.io_binding()
            for node in session.get_inputs():
                _bind(binding.bind_input, node.name, self.tensors[node.name])
            for node in session.get_outputs():
                shape = [sizes[dim] if isinstance(dim, str) else dim for dim in node.shape]
                dtype = torch.float16 if "float16" in node.type else torch.float32
                self.tensors[node.name] = torch.empty(shape, dtype=dtype, device=DEVICE)
                _bind(binding.bind_output, node.name, self.tensors[node.name])
            self._calls.append((session, binding))

    def __call__(self) -> None:
        for session, binding in self._calls:
            session.run_with_iobinding(binding)


def _bind(bind: Callable[..., None], name: str, tensor: torch.Tensor) -> None:
    bind(name, DEVICE, 0, NUMPY[tensor.dtype], list(tensor.shape), tensor.data_ptr())


def published(bench: Bench) -> Subject:
    """The model in a repository of its own."""
    repository = bench.work / f"{bench.layers}-layers" / "repository"
    try:
        load_bundle(repository, NAME)
    except BundleError:
        spec = bench.spec()
        folders = {}
        for step in Head.steps:
            source = bench.graph(step.suffix).parent
            folders[step.suffix] = shutil.copytree(source, repository / f".{step.suffix}", copy_function=os.link)
        sizes = {"D": llava_config(bench.layers, bench.tiny).text_config.hidden_size}
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


def vision_operations(bench: Bench) -> float:
    """Of a picture: the layers up to the one that is read, and the projector."""
    config = llava_config(bench.layers, bench.tiny)
    tower, width = config.vision_config, config.text_config.hidden_size
    tokens = (tower.image_size // tower.patch_size) ** 2 + 1
    layer = 2 * tokens * (4 * tower.hidden_size**2 + 2 * tower.hidden_size * tower.intermediate_size)
    layer += 4 * tokens**2 * tower.hidden_size
    projector = 2 * (tokens - 1) * (tower.hidden_size * width + width**2)
    return (tower.num_hidden_layers - 1) * layer + projector


def language_operations(bench: Bench, bucket: Bucket) -> float:
    """Of a row: the last layer has keys and values for all tokens and all else for the expressions."""
    text, tokens = llava_config(bench.layers, bench.tiny).text_config, bucket.tokens
    products = 4 * text.hidden_size**2 + 3 * text.hidden_size * text.intermediate_size
    layer = 2 * tokens * products + 4 * tokens**2 * text.hidden_size
    last = 2 * tokens * 2 * text.hidden_size**2 + 2 * bucket.expressions * products
    return (text.num_hidden_layers - 1) * layer + last


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


def on_device(tensor: torch.Tensor) -> torch.Tensor:
    """Where the model is; floats in fp16."""
    return (tensor.half() if tensor.is_floating_point() else tensor).to(DEVICE).contiguous()


def waiting(call: Callable[[], object]) -> Callable[[], None]:
    """The call until the device has done it."""

    def called() -> None:
        call()
        if ON_GPU:
            torch.cuda.synchronize()

    return called


def free() -> None:
    """Gives memory of the device back: weights of two frameworks may not fit."""
    gc.collect()
    if ON_GPU:
        torch.cuda.empty_cache()


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
    tokenizer = arguments.model_repository / "mini" / load_bundle(arguments.model_repository, "mini")[0].version
    bench = Bench(
        arguments.work, arguments.layers, arguments.tiny, arguments.rounds, arguments.calls, tokenizer / TOKENIZER_FILE
    )
    for name in PARTS if "all" in arguments.part else arguments.part:
        print(f"{name}: {PARTS[name].__doc__}")
        report = Report(f"seven_billion_{name}", arguments.out)
        for title, rows in PARTS[name](bench):
            report.add(title, rows)
        free()


if __name__ == "__main__":
    main()
