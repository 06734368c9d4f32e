"""LLaVA-1.5-7B's shapes on one GPU: exported graphs with ONNX Runtime against PyTorch, and through the real Triton.

    python -m benchmarks.seven_billion WORK [--layers 32] [--batches 1 2 4 8] [--expressions 1 8]

WORK (40 GB of disk) gets a checkpoint with random weights, which take the time that trained ones do, and a model
repository with its fp16 export; both are kept for the next run with as many layers. Speeds stand beside
the rate at which the same GPU multiplies matrices in the same run. Without a GPU it runs on the CPU, which only shows
that it runs: use --layers 1.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from benchmarks.flops import graph_flops
from benchmarks.lib.measuring import Report, Row, alternate, arguments_of, bars, flat, median, summary
from benchmarks.lib.service import Ensemble, Subject, step_times
from export.build import export
from export.graphs import Tensors
from export.parts.head import example_inputs
from referent.core.bundle import TOKENIZER_FILE, BundleError, load_bundle
from referent.core.packing import Bucket
from referent.core.prompts import Prompt
from referent.core.transform import ImageTransform
from referent.modeling.checkpoint import SPEC_FILE, CheckpointSpec, load_checkpoint, save_checkpoint
from referent.modeling.grounding import GroundingModel
from referent.modeling.heads import BoxHead
from runtime.launcher import TritonServer

NAME = "llava-7b"
MATRIX = 8192  # side of the square matrices whose product is the yardstick
ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
NUMPY = {torch.uint8: np.uint8, torch.int64: np.int64, torch.float16: np.float16, torch.float32: np.float32}


def save_random_llava(directory: Path, layers: int, tokenizer_file: Path) -> None:
    """LLaVA-1.5-7B with fewer layers if told so, fp16; made in the memory of its weights."""
    vision = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336,
        patch_size=14, projection_dim=768,
    )  # fmt: skip
    text = LlamaConfig(vocab_size=32064, num_hidden_layers=layers, max_position_embeddings=4096)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=32000, dtype="float16")
    torch.manual_seed(0)
    with torch.device("meta"):
        llava = LlavaForConditionalGeneration(config).half()
    llava.to_empty(device=DEVICE)
    for module in llava.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    for name, parameter in llava.named_parameters():
        if name.endswith("norm.weight") or "layernorm.weight" in name:
            torch.nn.init.ones_(parameter)
        elif name.endswith("class_embedding"):
            torch.nn.init.normal_(parameter, std=0.02)
    prompt = Prompt(
        template="<image>\nFind the object referred to: {expression}[LOC]", bos_token_id=1, pad_token_id=32001,
        image_token_id=32000, loc_token_id=32002,
    )  # fmt: skip
    spec = CheckpointSpec(
        image=ImageTransform(size=336), image_tokens=576, box_frame="transformed", prompt=prompt,
        buckets=(Bucket(640, 1), Bucket(832, 8)), present_threshold=None, base="base",
    )  # fmt: skip
    save_checkpoint(directory, GroundingModel(llava.cpu(), BoxHead(text.hidden_size)), spec, tokenizer_file)


class Chain:
    """The exported parts one after another with I/O binding: every tensor stays on the device, in memory of its own."""

    def __init__(
        self, subject: Subject, inputs: Tensors, hidden: dict[str, int], provider: str = CUDA, **options: str
    ) -> None:
        self.tensors, self.parts = dict(inputs), []
        for file in subject.graphs.values():
            on_gpu: list[Any] = [(provider, options), CUDA] if provider != CUDA else [(CUDA, options)]
            providers = [*on_gpu, "CPUExecutionProvider"] if ON_GPU else ["CPUExecutionProvider"]
            session = onnxruntime.InferenceSession(file, providers=providers)
            self.provider = session.get_providers()[0]  # the one asked for, unless its libraries are missing
            binding = session.io_binding()
            for node in session.get_inputs():
                _bind(binding.bind_input, node.name, self.tensors[node.name])
            for node in session.get_outputs():
                shape = [hidden.get(dim, dim) for dim in node.shape]
                dtype = torch.float16 if "float16" in node.type else torch.float32
                self.tensors[node.name] = torch.empty(shape, dtype=dtype, device=DEVICE)
                _bind(binding.bind_output, node.name, self.tensors[node.name])
            self.parts.append(partial(session.run_with_iobinding, binding))

    def __call__(self) -> None:
        for part in self.parts:
            part()


def _bind(bind: Callable[..., None], name: str, tensor: torch.Tensor) -> None:
    bind(name, DEVICE, 0, NUMPY[tensor.dtype], list(tensor.shape), tensor.data_ptr())


def matrix_rate() -> float:
    """Operations a second of an fp16 matrix product, the best of three blocks."""
    side = MATRIX if ON_GPU else MATRIX // 16
    a, b = (torch.randn(side, side, device=DEVICE).half() for _ in range(2))
    times = alternate({"product": waiting(lambda: a @ b)}, rounds=3, calls=10)
    return 2 * side**3 / min(flat(times["product"])) * 1000


def waiting(call: Callable[[], object]) -> Callable[[], None]:
    """The call until the device has done it."""

    def called() -> None:
        call()
        if ON_GPU:
            torch.cuda.synchronize()

    return called


@contextmanager
def pytorch_paths(checkpoint: Path, dtype: torch.dtype) -> Iterator[Callable[[Tensors], dict[str, Callable[[], None]]]]:
    """The model as a researcher runs it: attention by its formula, fused, and compiled."""
    model, _ = load_checkpoint(checkpoint, dtype)
    model.to(DEVICE)
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # or the formula is computed in fp32
    compiled = torch.compile(model, dynamic=False)

    @torch.inference_mode()
    def run(module: Any, backends: list[SDPBackend], inputs: Tensors) -> None:
        with sdpa_kernel(backends):
            module(**inputs)

    fused = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH]
    kind = str(dtype).removeprefix("torch.")
    yield lambda inputs: {
        f"PyTorch eager, {kind}": waiting(lambda: run(model, [SDPBackend.MATH], inputs)),
        f"PyTorch sdpa, {kind}": waiting(lambda: run(model, fused, inputs)),
        f"PyTorch compile, {kind}": waiting(lambda: run(compiled, fused, inputs)),
    }


def onnx_paths(subject: Subject, inputs: Tensors) -> dict[str, Callable[[], None]]:
    """The exported parts and their chain; on a GPU also with its calls recorded once and replayed (CUDA graphs)."""
    batch, slots = inputs["loc_positions"].shape
    sizes = {"batch": batch, "slots": slots, "tokens": inputs["input_ids"].shape[1]}
    chain = Chain(subject, inputs, sizes)
    paths = {f"ONNX Runtime, {name}": waiting(part) for name, part in zip(subject.graphs, chain.parts, strict=True)}
    paths["ONNX Runtime"] = waiting(chain)
    if ON_GPU:
        paths["ONNX Runtime, CUDA graphs"] = waiting(Chain(subject, inputs, sizes, enable_cuda_graph="1"))
        tensorrt = Chain(subject, inputs, sizes, TENSORRT, trt_fp16_enable="1")
        if tensorrt.provider == TENSORRT:
            paths["ONNX Runtime, TensorRT"] = waiting(tensorrt)
    return paths


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--expressions", type=int, nargs="+", default=[1, 8], choices=[1, 8])
    parser.add_argument("--model-repository", type=Path, default=Path("model_repository"), help="of mini's tokenizer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=20)
    arguments = parser.parse_args()
    report = Report("seven_billion", arguments.out)
    work = arguments.work / f"{arguments.layers}-layers"
    checkpoint, repository = work / "checkpoint", work / "repository"
    if not (checkpoint / SPEC_FILE).exists():
        tokenizer = arguments.model_repository / "mini" / load_bundle(arguments.model_repository, "mini")[0].version
        save_random_llava(checkpoint, arguments.layers, tokenizer / TOKENIZER_FILE)
    try:
        load_bundle(repository, NAME)
    except BundleError:
        export(checkpoint, NAME, repository, "fp16")  # raises where parity fails
    subject = Subject(repository, NAME)

    rate = matrix_rate()
    rows: list[Row] = []
    model, spec = load_checkpoint(checkpoint, dtype=None)
    cases = {
        (batch, count): example_inputs(model, spec, batch, next(b for b in spec.buckets if b.expressions >= count))
        for batch in arguments.batches
        for count in arguments.expressions
    }
    del model
    # one framework at a time: weights of two may not fit
    for half in (torch.float16, torch.bfloat16):
        with pytorch_paths(checkpoint, half) as paths_of:
            for case, inputs in cases.items():
                rows += measured(subject, case, paths_of(on_device(inputs)), rate, arguments)
    for case, inputs in cases.items():
        rows += measured(subject, case, onnx_paths(subject, on_device(inputs)), rate, arguments)
    with TritonServer(repository, [NAME]) as server, Ensemble(subject, server.grpc_url) as ensemble:
        for case, inputs in cases.items():
            arrays = {tensor.name: inputs[tensor.name].numpy() for tensor in subject.kind.inputs}
            rows += measured(subject, case, {"Triton ensemble, gRPC": partial(ensemble, arrays)}, rate, arguments)
        clocks = step_times(subject, server.grpc_url)
    report.add(f"milliseconds a pass; this device multiplies {rate / 1e12:.0f} TFLOP/s", rows)
    report.add("Triton's own clock, mean of all requests", clocks)
    report.add("goals on an H200", verdicts(rows))
    single = {row["path"]: row["p50"] for row in rows if (row["batch"], row["expressions"]) == next(iter(cases))}
    report.chart(lambda axes: bars(axes, single, "milliseconds, first case"))


def verdicts(rows: list[Row]) -> list[Row]:
    """The goals for the whole model, by ONNX Runtime and through Triton: latency and images/s of one picture with one
    expression and of the best batch, and what eight expressions in a pass gain over eight passes."""
    found: list[Row] = []
    for path in ("ONNX Runtime", "ONNX Runtime, CUDA graphs", "ONNX Runtime, TensorRT", "Triton ensemble, gRPC"):
        own = {(row["batch"], row["expressions"]): row for row in rows if row["path"] == path}
        if not {(1, 1), (1, 8)} <= own.keys():
            continue
        single, packed = own[1, 1]["p50"], own[1, 8]["p50"]
        best = max(row["images/s"] for (_, expressions), row in own.items() if expressions == 1)
        for what, goal, value, met in (
            ("ms, batch 1", "<= 17.5", single, single <= 17.5),
            ("images/s", ">= 57", best, best >= 57),
            ("8 expressions against 8 passes", ">= 4.5x", 8 * single / packed, 8 * single / packed >= 4.5),
        ):
            row = {"path": path, "what": what, "goal": goal, "found": value}
            found.append(row | {"met": "pass" if met else "falls short"})
    return found


def on_device(inputs: Tensors) -> Tensors:
    """The inputs where the model is."""
    return {name: tensor.to(DEVICE).contiguous() for name, tensor in inputs.items()}


def measured(
    subject: Subject, case: tuple[int, int], paths: dict[str, Callable[[], None]], rate: float, arguments: Any
) -> list[Row]:
    """A row a path; the share of the matrix rate for paths that run the whole model."""
    batch, count = case
    bucket = next(bucket for bucket in subject.bundle.buckets if bucket.expressions >= count)
    operations = batch * sum(graph_flops(file, *bucket) for file in subject.graphs.values())
    rows = []
    for path, blocks in alternate(paths, arguments.rounds, arguments.calls).items():
        is_part = any(path.endswith(suffix) for suffix in subject.graphs)
        share = None if is_part else operations / (median(blocks) / 1000) / rate
        rows.append({"path": path, "batch": batch, "expressions": count} | summary(flat(blocks)))
        rows[-1] |= {"images/s": 1000 * batch / median(blocks), "of the matrix rate": share}
    return rows


if __name__ == "__main__":
    main()
