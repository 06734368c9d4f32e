"""Many expressions of one image in one pass, compared with a request for each, and with a batch of single ones.

    python -m benchmarks.packed [--expressions 1 2 4 8 16] [--wide]

In process, at the ensemble and at the gateway, with the prediction from counting operations (`benchmarks.flops`). A
batch at the gateway is that many requests at once. `--wide` also measures, in process, random weights with LLaVA-1.5's
576 image tokens; mini has 144, so an expression has a larger share of the work.
"""

import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from benchmarks.flops import model_flops
from benchmarks.lib.measuring import Blocks, Report, Row, alternate, arguments_of, lines, median, over_rounds, spread
from benchmarks.lib.service import (
    EXPRESSIONS,
    PICTURE,
    REPOSITORY,
    Ensemble,
    Gateway,
    InProcess,
    Subject,
    batch,
    form,
    serve,
)
from referent.core.packing import Bucket

PACKED, SINGLE, BATCH = "packed", "single requests", "batch"
WIDE_TOKENS = 576
Ways = dict[str, Callable[[], object]]


def tensors_ways(subject: Subject, ask: Callable[..., object], count: int) -> Ways:
    """The three ways to ask `count` expressions of what takes the ensemble's tensors."""
    data, expressions = PICTURE.read_bytes(), EXPRESSIONS[:count]
    packed = subject.arrays(data, expressions)
    singles = [subject.arrays(data, [expression]) for expression in expressions]
    together = batch(singles)
    return {
        PACKED: lambda: ask(packed),
        SINGLE: lambda: [ask(single) for single in singles],
        BATCH: lambda: ask(together),
    }


def gateway_ways(gateways: list[Gateway], model: str, count: int) -> Ways:
    """The same over HTTP; a connection each for those at once."""
    data, expressions = PICTURE.read_bytes(), EXPRESSIONS[:count]
    packed, singles = form(data, expressions, model), [form(data, [text], model) for text in expressions]
    pool = ThreadPoolExecutor(len(gateways))
    return {
        PACKED: lambda: gateways[0](packed),
        SINGLE: lambda: [gateways[0](single) for single in singles],
        BATCH: lambda: list(pool.map(lambda pair: pair[0](pair[1]), zip(gateways, singles, strict=False))),
    }


def predicted(subject: Subject, count: int) -> float:
    """How many times the operations of a packed pass `count` single ones take."""
    one, packed = (next(b for b in subject.bundle.buckets if b.expressions >= n) for n in (1, count))
    return count * model_flops(subject, *one) / model_flops(subject, *packed)


def row(level: str, count: int, times: dict[str, Blocks], prediction: float) -> Row:
    """Milliseconds for all `count` expressions, and what packing gains."""
    gains = over_rounds(lambda single, packed: single / packed, times[SINGLE], times[PACKED])
    gain = median(times[SINGLE]) / median(times[PACKED])
    return (
        {"level": level, "expressions": count}
        | {f"{way} ms": median(blocks) for way, blocks in times.items()}
        | {"packed against singles": gain, "by round": spread(gains)}
        | {"against a batch": median(times[BATCH]) / median(times[PACKED]) if BATCH in times else None}
        | {"operations predict": prediction, "of it": gain / prediction}
    )


def publish_wide(like: Subject, directory: Path) -> Subject:
    """A model with random weights and 576 image tokens, nearly all of its work in the language model as LLaVA's."""
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    from export.graphs import export_onnx, run
    from export.parts.head import example_inputs, split
    from export.publish import publish
    from referent.core.bundle import TOKENIZER_FILE
    from referent.core.transform import ImageTransform
    from referent.modeling.grounding import GroundingModel
    from referent.modeling.heads import BoxHead

    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=336,
        patch_size=14,
    )
    text = LlamaConfig(
        vocab_size=1024, hidden_size=512, intermediate_size=1376, num_hidden_layers=6, num_attention_heads=8,
        num_key_value_heads=8, max_position_embeddings=2048,
    )  # fmt: skip
    prompt = like.bundle.prompt
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=prompt.image_token_id)
    model = GroundingModel(LlavaForConditionalGeneration(config), BoxHead(text.hidden_size)).eval()
    spec = like.bundle.model_copy(
        update={
            "image": ImageTransform(size=vision.image_size),
            "image_tokens": WIDE_TOKENS,
            "buckets": (Bucket(640, 1), Bucket(832, 8)),  # those that referent.modeling.llava gives LLaVA-1.5
        }
    )
    parts = split(model)
    tensors = run(parts, example_inputs(model, spec, 2, spec.buckets[-1]))
    folders = {part.step.suffix: directory / "parts" / part.step.suffix for part in parts}
    for part in parts:
        export_onnx(part, tensors, "fp32", folders[part.step.suffix] / "model.onnx")
    repository = directory / "wide"
    publish(
        repository, "wide", spec, folders,
        like.repository / like.name / like.bundle.version / TOKENIZER_FILE, dtype="fp32", has_scores=True,
        sizes={"D": text.hidden_size}, max_batch_size=8,
    )  # fmt: skip
    return Subject(repository, "wide")


def measure_wide(like: Subject, rounds: int, calls: int) -> Row:
    """Eight expressions in process at 576 image tokens."""
    with tempfile.TemporaryDirectory() as directory:
        subject = publish_wide(like, Path(directory))
        times = alternate(tensors_ways(subject, InProcess(subject), 8), rounds, calls)
        return row(f"in process, {WIDE_TOKENS} image tokens", 8, times, predicted(subject, 8))


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--model-repository", type=Path, default=REPOSITORY)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--expressions", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=8, help="in a block")
    parser.add_argument("--wide", action="store_true", help="576 image tokens too; exports a model first (needs torch)")
    arguments = parser.parse_args()
    report = Report("packed", arguments.out)
    subject = Subject(arguments.model_repository, arguments.model)
    rows: list[Row] = []
    with ExitStack() as stack:
        served = stack.enter_context(serve(arguments.model_repository, REFERENT_DEFAULT_MODEL=arguments.model))
        ensemble = stack.enter_context(Ensemble(subject, served.grpc_url))
        gateways = [stack.enter_context(Gateway(served.url)) for _ in range(max(arguments.expressions))]
        chain = InProcess(subject)
        largest_batch = 8  # max_batch_size of the export
        for count in arguments.expressions:
            levels = {"in process": tensors_ways(subject, chain, count)}
            levels["ensemble"] = tensors_ways(subject, ensemble, count)
            if count > largest_batch:
                levels["ensemble"].pop(BATCH)
            levels["gateway"] = gateway_ways(gateways[:count], arguments.model, count)
            paths = {f"{level}/{way}": ask for level, ways in levels.items() for way, ask in ways.items()}
            times = alternate(paths, arguments.rounds, arguments.calls)
            for level, ways in levels.items():
                own = {way: times[f"{level}/{way}"] for way in ways}
                rows.append(row(level, count, own, predicted(subject, count)))
    report.add("all expressions of one picture, milliseconds", rows)
    if arguments.wide:
        wide = measure_wide(subject, max(2, arguments.rounds // 2), 3)
        report.add(f"{WIDE_TOKENS} image tokens, random weights", [wide])
    predictions = [
        {"level": "operations predict", "expressions": count, "packed against singles": predicted(subject, count)}
        for count in arguments.expressions
    ]
    report.chart(lambda axes: lines(axes, rows + predictions, "expressions", "packed against singles", "level"))


if __name__ == "__main__":
    main()
