"""A tiny bundle, and a fake Triton: a real gRPC server with Triton's protocol that answers with chosen boxes."""

import threading
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import np_to_triton_dtype, triton_to_np_dtype

from referent.core.bundle import BUNDLE_FILE, TOKENIZER_FILE, Bundle, file_entry, load_bundle
from referent.core.contract import DIGEST_PARAMETER, dims_of
from referent.core.packing import Bucket
from referent.core.prompts import Prompt
from referent.core.transform import ImageTransform
from referent.kinds import kind_of

SPECIAL = ["<pad>", "<s>", "<image>", "[LOC]"]  # ids 0 to 3


def publish(repository: Path, version: str = "1", name: str = "tiny", **changes: Any) -> None:
    """Writes a bundle whose tokenizer has a token a byte."""
    directory = repository / name / version
    directory.mkdir(parents=True)
    pieces = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(directory / TOKENIZER_FILE))
    spec: dict[str, Any] = {
        "image": ImageTransform(size=32),
        "image_tokens": 4,
        "box_frame": "transformed",
        "prompt": Prompt(
            template="<image>\nFind: {expression} [LOC]",
            bos_token_id=1,
            pad_token_id=0,
            image_token_id=2,
            loc_token_id=3,
        ),
        "buckets": (Bucket(64, 1), Bucket(256, 4)),
        "present_threshold": 0.5,
        "evaluation": {"test": {"mean_iou": 0.75}},
    }
    fixed: dict[str, Any] = {
        "parts": {},
        "has_scores": True,
        "dtype": "fp32",
        "minimum_onnxruntime": "1.27",
        "files": {f"{name}/{version}/{TOKENIZER_FILE}": file_entry(directory / TOKENIZER_FILE)},
    }
    bundle = Bundle(name=name, version=version, **{**spec, **fixed, **changes})
    (directory / BUNDLE_FILE).write_text(bundle.model_dump_json())


class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Serves what `serve` was told; the attributes steer its answers and show what it was asked."""

    def __init__(self) -> None:
        self.served: dict[str, dict[str, tuple[Bundle, str]]] = {}  # name -> version -> bundle, digest
        self.box = (0.5, 0.5, 0.25, 0.5)
        self.failures: list[tuple[grpc.StatusCode, str]] = []  # of the next inferences
        self.misreported_size: int | None = None  # of the image, in the model's config
        self.holds = False  # whether inferences are not answered until `release`
        self.holds_model: str | None = None  # the same for one model
        self.requests: list[dict[str, Any]] = []  # arrays by name, "id" and gRPC "metadata"
        self.arrived, self.abandoned = threading.Event(), threading.Event()
        self._held: list[threading.Event] = []

    def release(self) -> None:
        """Answers what is held, and all that follows."""
        self.holds, self.holds_model = False, None
        for held in self._held:
            held.set()

    def serve(self, repository: Path, name: str = "tiny", version: str = "1", digest: str | None = None) -> None:
        bundle, actual = load_bundle(repository, name, version)
        self.served.setdefault(name, {})[version] = bundle, digest or actual

    def ModelMetadata(self, request: Any, context: grpc.ServicerContext) -> Any:
        if request.name not in self.served:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{request.name}' is not found")
        return service_pb2.ModelMetadataResponse(name=request.name, versions=self.served[request.name])

    def ModelConfig(self, request: Any, context: grpc.ServicerContext) -> Any:
        bundle, digest = self._find(request.name, request.version, context)
        response = service_pb2.ModelConfigResponse()
        response.config.parameters[DIGEST_PARAMETER].string_value = digest
        kind = kind_of(bundle)
        for ours, theirs in ((kind.inputs, "input"), (kind.outputs(bundle), "output")):
            for tensor in ours:
                dims = dims_of(tensor, {"S": self.misreported_size or bundle.image.size})
                getattr(response.config, theirs).add(name=tensor.name, data_type=f"TYPE_{tensor.dtype}", dims=dims)
        response.config.ensemble_scheduling.step.add(model_name=f"{bundle.name}_head")
        return response

    def ModelInfer(self, request: Any, context: grpc.ServicerContext) -> Any:
        arrays = {
            tensor.name: np.frombuffer(content, triton_to_np_dtype(tensor.datatype)).reshape(tensor.shape)
            for tensor, content in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        self.requests.append(arrays | {"id": request.id, "metadata": dict(context.invocation_metadata())})
        if self.holds or request.model_name == self.holds_model:
            ended = threading.Event()
            context.add_callback(ended.set)
            self._held.append(ended)
            self.arrived.set()
            ended.wait(60)
            if not context.is_active():
                self.abandoned.set()
        if self.failures:
            context.abort(*self.failures.pop(0))
        self._find(request.model_name, request.model_version, context)
        answers = self._written(arrays) if "labels" in arrays else self._read(arrays)
        response = service_pb2.ModelInferResponse(model_name=request.model_name, id=request.id)
        for output in request.outputs:
            value = answers[output.name]
            response.outputs.add(name=output.name, datatype=np_to_triton_dtype(value.dtype), shape=value.shape)
            response.raw_output_contents.append(value.tobytes())
        return response

    def _read(self, arrays: dict[str, Any]) -> dict[str, Any]:
        slots = arrays["loc_positions"].shape[1]
        values = {"boxes": np.tile(self.box, (1, slots, 1)), "scores": np.linspace([0.9], [0.1], slots, axis=1)}
        return {name: value.astype(np.float32) for name, value in values.items()}

    def _written(self, arrays: dict[str, Any]) -> dict[str, Any]:
        """Of kind `generator`: the pass of each expression that holds "broken" failed."""
        labels = [bytes(label) for label in arrays["labels"][0]]
        sound = [index for index, label in enumerate(labels) if b"broken" not in label]
        slots, floats = len(labels), np.float32
        return {
            "texts": np.frombuffer(b"[text]" * slots, np.uint8).reshape(1, slots, -1),
            "boxes": np.tile(self.box, (1, len(sound), 1)).astype(floats),
            "owners": np.array([sound], np.int32),
            "scores": np.full((1, len(sound)), 0.8, floats),
            "answer_scores": np.full((1, slots), 0.7, floats),
            "mass": np.full((1, slots), -1, floats),
            "finish_reasons": np.array([[0 if index in sound else 2 for index in range(slots)]], np.int32),
            "passes": np.array([[11]], np.int32),
            "prefill_ms": np.array([[0.25]], floats),
            "generation_ms": np.array([[0.5]], floats),
        }

    def _find(self, name: str, version: str, context: grpc.ServicerContext) -> tuple[Bundle, str]:
        version = version or max(self.served.get(name, {}), default="")
        if version not in self.served.get(name, {}):
            message = f"Request for unknown model: '{name}' version {version} is not at ready state"
            context.abort(grpc.StatusCode.UNAVAILABLE, message)
        return self.served[name][version]
