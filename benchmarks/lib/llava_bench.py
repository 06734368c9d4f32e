"""A model of LLaVA-1.5-7B's shape on the device, its graphs, and the rates that passes are compared with."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration

from benchmarks.lib.device import DEVICE, ON_GPU, on_device, waiting
from benchmarks.lib.measuring import Row, alternate, flat, median, summary
from benchmarks.lib.operations import language_operations, vision_operations
from benchmarks.lib.random_llava import llava_config, llava_spec
from export.graphs import Part, Tensors, export_onnx, quantize, stand_ins
from export.parts import generator, head
from export.quantize import ROUNDINGS
from referent.core.packing import Bucket
from referent.kinds.generator import GENERATOR
from referent.modeling.checkpoint import CheckpointSpec
from referent.modeling.grounding import GroundingModel
from referent.modeling.heads import BoxHead

MATRIX, COPIED_BYTES = 8192, 2**31  # the yardsticks: side of a square matrix, bytes of a copy
BUCKETS, TINY_BUCKETS = (Bucket(640, 1), Bucket(832, 8)), (Bucket(96, 1), Bucket(192, 8))


@dataclass
class Bench:
    """What the parts of `benchmarks.seven_billion` share."""

    work: Path
    layers: int
    tiny: bool
    rounds: int
    calls: int
    tokenizer_file: Path

    @property
    def config(self) -> LlavaConfig:
        """Of the model."""
        return llava_config(self.layers, self.tiny)

    @property
    def folder(self) -> Path:
        """Of what is made of this shape."""
        return self.work / f"{self.layers}-layers{'-tiny' if self.tiny else ''}"

    @cached_property
    def buckets(self) -> tuple[Bucket, Bucket]:
        """For one expression and for eight."""
        return TINY_BUCKETS if self.tiny else BUCKETS

    def spec(self, text: bool = False) -> CheckpointSpec:
        """Of the model."""
        return llava_spec(self.config, self.buckets, text)

    def model(self, text: bool = False) -> GroundingModel:
        """With random fp16 weights, on the device."""
        torch.manual_seed(0)
        with torch.device(DEVICE):
            llava = LlavaForConditionalGeneration._from_config(self.config, dtype=torch.float16)
            box_head = None if text else BoxHead(self.config.text_config.hidden_size)
        return GroundingModel(llava, box_head).eval().to(DEVICE)

    def graph(self, step: str, weights: str | None = None, model: GroundingModel | None = None) -> Path:
        """The exported graph of a step, made where it is not there."""
        folder = self.folder / "-".join(filter(None, (step, weights)))
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

    def floor_ms(self, bucket: Bucket) -> float:
        """What a pass through both would take at the card's rate."""
        return 1000 * (vision_operations(self.config) + language_operations(self.config, bucket)) / self.rate

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
