"""The golden inference: one request whose answer says whether a model is fit to serve."""

from pathlib import Path

from PIL import Image
from tritonclient.grpc import InferenceServerClient

from referent.core.bundle import load_bundle, load_encoder
from referent.core.processor import Inputs, Processor
from referent.triton.client import Prediction, TritonError, own_errors, read_answer, row_request

IMAGE = Image.linear_gradient("L").resize((64, 48)).convert("RGB")
EXPRESSION = "the object on the left"
TIMEOUT_S = 10


def inputs(processor: Processor) -> Inputs:
    """What is asked."""
    return processor.preprocess(IMAGE, [EXPRESSION])


def check(prediction: Prediction) -> None:
    """Raises `TritonError` for boxes that no model in order gives."""
    boxes = prediction.boxes
    if not ((boxes >= 0) & (boxes <= 1)).all():
        raise TritonError(f"the golden inference gave {boxes.tolist()}, outside 0..1")


def probe(repository: Path, grpc_url: str, name: str, served_as: str) -> None:
    """Asks the newest version of a model that Triton has ready under the name `served_as`, from any thread.

    Raises `TritonError`, TimeoutError and `referent.core.bundle.BundleError` where the golden inference fails.
    """
    with InferenceServerClient(grpc_url) as client, own_errors():
        version = max(client.get_model_metadata(served_as, client_timeout=TIMEOUT_S).versions, key=int)
        bundle, _ = load_bundle(repository, name, version)
        asked = inputs(Processor(bundle, load_encoder(repository, bundle)))
        request = row_request(bundle, asked.image, asked.rows[0]) | {"model_name": served_as}
        check(Prediction(*read_answer(bundle, asked.rows[0], client.infer(**request, client_timeout=TIMEOUT_S))))
