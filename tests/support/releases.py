"""A model of kind `head` that is published in milliseconds: it finds the same box in every picture."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
from onnx import parser
from tokenizers import Tokenizer, models, pre_tokenizers

from export.publish import publish
from referent.core.bundle import Bundle, load_bundle
from referent.core.packing import Bucket
from referent.core.prompts import Prompt
from referent.core.spec import ModelSpec
from referent.core.transform import ImageTransform

SPECIAL = ["<pad>", "<s>", "<image>", "[LOC]"]  # ids 0 to 3
SPEC = ModelSpec(
    image=ImageTransform(size=8),
    image_tokens=2,
    box_frame="image",
    prompt=Prompt(
        template="<image>{expression}[LOC]", bos_token_id=1, pad_token_id=0, image_token_id=2, loc_token_id=3
    ),
    buckets=(Bucket(64, 1), Bucket(256, 4)),
    present_threshold=0.5,
)
VISION_ENCODER = """(uint8[B, 8, 8, 3] image) => (float[B, 2, SIZE] image_features) {
    numbers = Cast <to = 1> (image)
    flat = Flatten <axis = 1> (numbers)
    start = Constant <value = int64[1] {0}> ()
    end = Constant <value = int64[1] {SIZES}> ()
    axis = Constant <value = int64[1] {1}> ()
    first = Slice (flat, start, end, axis)
    shape = Constant <value = int64[3] {-1, 2, SIZE}> ()
    image_features = Reshape (first, shape)
}"""
LANGUAGE_MODEL = """(int64[B, T] input_ids, int64[B, T] segment_ids, int64[B, N] loc_positions,
                     float[B, 2, SIZE] image_features) => (float[B, N, SIZE] hidden_states) {
    axis = Constant <value = int64[1] {1}> ()
    mean = ReduceMean <keepdims = 1> (image_features, axis)
    last = Constant <value = int64[1] {2}> ()
    ids = Add (input_ids, segment_ids)
    all = ReduceSum <keepdims = 1> (ids, axis)
    located = Add (loc_positions, all)
    numbers = Cast <to = 1> (located)
    places = Unsqueeze (numbers, last)
    hidden_states = Add (mean, places)
}"""
BOX_HEAD = """(float[B, N, SIZE] hidden_states) => (float[B, N, 4] boxes, float[B, N] scores) {
    zero = Constant <value = float {0}> ()
    nothing = Mul (hidden_states, zero)
    box = Constant <value = float[4] {CX, 0.5, 0.25, 0.5}> ()
    last = Constant <value = int64[1] {2}> ()
    column = ReduceSum <keepdims = 1> (nothing, last)
    boxes = Add (column, box)
    sum = ReduceSum <keepdims = 0> (nothing, last)
    score = Constant <value = float {0.9}> ()
    scores = Add (sum, score)
}"""
GRAPHS = {"vision_encoder": VISION_ENCODER, "language_model": LANGUAGE_MODEL, "box_head": BOX_HEAD}


def write_graph(file: Path, graph: str) -> None:
    """Writes a model of ONNX's text form, without its name."""
    onnx.save(parser.parse_model(f'<ir_version: 10, opset_import: ["": 18]> graph {graph}'), file)


def publish_tiny(
    repository: Path,
    name: str = "tiny",
    cx: float = 0.5,
    edit: Callable[[Path], object] = lambda parts: None,
    special: list[str] = SPECIAL,
    hidden_size: int = 4,
) -> tuple[Bundle, str]:
    """Publishes the next version; its boxes are centred at `cx` of the width. `edit` gets the folder of the parts,
    STEP/model.onnx, before they are hashed."""
    work = repository.parent / f".{repository.name}-work"
    for step, graph in GRAPHS.items():
        (work / step).mkdir(parents=True)
        for mark, value in {"CX": cx, "SIZES": 2 * hidden_size, "SIZE": hidden_size}.items():
            graph = graph.replace(mark, str(value))
        write_graph(work / step / "model.onnx", graph)
    pieces = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(work / "tokenizer.json"))
    edit(work)
    options = {"dtype": "fp32", "has_scores": True, "sizes": {"D": hidden_size}, "max_batch_size": 8}
    try:
        return publish(repository, name, SPEC, {s: work / s for s in GRAPHS}, work / "tokenizer.json", **options)
    finally:
        shutil.rmtree(work)


def deliver(
    repository: Path,
    damage: Callable[[Path, Bundle], object] = lambda repository, bundle: None,
    name: str = "tiny",
    **options: object,
) -> tuple[Bundle, str]:
    """Publishes the next version as `publish_tiny` does, but the files are damaged before anything points at them:
    `damage` gets another repository, with this version alone, and the bundle."""
    copy = repository.parent / f".{repository.name}-copy"
    for folder in repository.glob("*/[1-9]*"):
        (copy / folder.relative_to(repository)).mkdir(parents=True)  # so that the next number is the same
    try:
        bundle, digest = publish_tiny(copy, name, **options)
        damage(copy, bundle)
        for part, version in (*bundle.parts.items(), (name, bundle.version)):
            os.rename(copy / part / str(version), repository / part / str(version))
        for model in (*bundle.parts, name):
            os.replace(copy / model / "config.pbtxt", repository / model / "config.pbtxt")
    finally:
        shutil.rmtree(copy)
    return bundle, digest


def break_head(repository: Path, name: str) -> None:
    """Cuts the newest version's last part."""
    bundle, _ = load_bundle(repository, name)
    (repository / f"{name}_box_head" / bundle.version / "model.onnx").write_bytes(b"no model")
