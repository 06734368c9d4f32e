"""The golden inference: a request whose answer shows whether a model works."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from tritonclient.grpc import InferenceServerClient

from referent.core.bundle import Bundle, load_bundle
from referent.core.kind import Arrays, Prepared
from referent.core.processor import Processor
from referent.kinds import load_processor
from referent.triton.protocol import TritonError, inference_request, newest, own_errors, read_outputs

IMAGE = Image.linear_gradient("L").resize((64, 48)).convert("RGB")
EXPRESSION = "the object on the left"
TIMEOUT_S, TIMEOUT_S_PER_GB = 10, 15  # 7B take 27 s for each 4 layers on two cores


def prepare(processor: Processor) -> Prepared:
    """The request of the golden inference, as tensors."""
    return processor.prepare_picture(IMAGE, [EXPRESSION])


def check(processor: Processor, outputs: Sequence[Arrays]) -> None:
    """Raises `TritonError` for outputs that no working model of this kind gives."""
    try:
        processor.kind.check_golden(outputs)
    except ValueError as error:
        raise TritonError(f"the golden inference gave {error}") from error


def timeout_s_of(bundle: Bundle) -> float:
    """The default limit for the golden inference, in seconds, by the size of the model."""
    return TIMEOUT_S + TIMEOUT_S_PER_GB * bundle.computed_bytes / 1e9


def probe(repository: Path, grpc_url: str, name: str, timeout_s: float, served_as: str = "") -> None:
    """Asks the newest version of a model that Triton has ready under the name `served_as`, by default its own, from any
    thread.

    Raises `TritonError`, TimeoutError and `referent.core.bundle.BundleError` where the golden inference fails.
    """
    with InferenceServerClient(grpc_url) as client, own_errors():
        version = newest(client.get_model_metadata(served_as or name, client_timeout=timeout_s))
        bundle, _ = load_bundle(repository, name, version)
        processor = load_processor(repository, bundle)
        outputs = []
        for arrays in prepare(processor).inferences:
            request = inference_request(bundle, arrays, timeout_s) | {"model_name": served_as or name}
            outputs.append(read_outputs(bundle, arrays, client.infer(**request, client_timeout=timeout_s)))
        check(processor, outputs)
