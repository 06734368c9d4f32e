"""A client that asks Triton and needs no gateway.

from referent import TritonClient
TritonClient("127.0.0.1:8001", "mini").ground("photo.jpg", ["the queen"]).results[0].box_xyxy
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import stamina
from tritonclient.grpc import InferenceServerClient

from referent.client.results import Grounding
from referent.core.api import ImageSize
from referent.core.bundle import Bundle, load_bundle
from referent.core.clock import StageClock
from referent.core.kind import MAX_INSTANCES, Arrays, Options
from referent.core.prompts import ExpressionError
from referent.core.sources import ImageSource, encoded, held, is_url
from referent.kinds import load_processor
from referent.triton.protocol import (
    LostConnectionError,
    TritonBusyError,
    TritonUnavailableError,
    VersionGoneError,
    check_config,
    inference_request,
    newest,
    own_errors,
    read_outputs,
)

DEFAULT_URL = "127.0.0.1:8001"


class TritonClient:
    """Grounds by one model of the Triton at `url`, with the processor of its bundle in `model_repository`, which is the
    folder that this Triton serves. Answers as the gateway does. `timeout_s` limits each call. Close it, or use `with`.

    Raises, when it is made and when it is asked, `TritonError`, TimeoutError and `referent.core.bundle.BundleError`.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        model: str = "mini",
        model_repository: str | Path = "model_repository",
        timeout_s: float = 30,
    ) -> None:
        self._client, self._name, self._repository = InferenceServerClient(url), model, Path(model_repository)
        self._timeout_s = timeout_s
        self._retrying = stamina.RetryingCaller(attempts=None, timeout=timeout_s, wait_max=1)
        try:
            self._load()
        except BaseException as error:
            self.close()
            if isinstance(error, LostConnectionError):
                raise LostConnectionError(
                    f"no Triton at {url} ({error}); start one with: referent serve --grpc-port 8001"
                ) from error
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()

    def ground(
        self,
        image: ImageSource,
        expressions: str | Sequence[str],
        max_instances: int | None = None,
        heatmap: bool = False,
    ) -> Grounding:
        """As `referent.Client.ground`, for images that are not URLs.

        Raises `referent.core.images.ImageError` and `referent.core.prompts.ExpressionError` too, and ValueError.
        """
        if is_url(image):
            raise ValueError(f"Triton fetches no images and {image} is a URL: give the image itself")
        asked = [expressions] if isinstance(expressions, str) else list(expressions)
        if not asked:
            raise ExpressionError("there are no expressions: give one or more")
        if max_instances is not None and not 1 <= max_instances <= MAX_INSTANCES:
            raise ValueError(f"max_instances is {max_instances}: give 1 to {MAX_INSTANCES}, or nothing")
        source, options = held(image), Options(max_instances, heatmap)
        deadline = time.monotonic() + self._timeout_s
        passing = (TritonUnavailableError, TritonBusyError)
        return self._retrying(passing, self._ground, encoded(source), asked, options, deadline).of(source)

    def _ground(self, data: bytes, expressions: list[str], options: Options, deadline: float) -> Grounding:
        bundle, digest, processor = self._model
        clock = StageClock("queue")
        prepared = processor.prepare(data, expressions, options, enter=clock.enter)
        clock.enter("inference")
        try:
            outputs = [self._infer(bundle, arrays, options, deadline) for arrays in prepared.inferences]
        except VersionGoneError:  # another was published: the next attempt asks that one, with its own processor
            self._load()
            raise
        clock.enter("postprocess")
        clock.parts(processor.kind.timings_ms(outputs))
        results = processor.answers(prepared, outputs)
        width, height = prepared.frame.image_size
        return Grounding(
            model=bundle.name,
            version=bundle.version,
            digest=digest,
            image=ImageSize(width=width, height=height),
            results=results,
            timings_ms=clock.timings(),
        )

    def _infer(self, bundle: Bundle, arrays: Arrays, options: Options, deadline: float) -> Arrays:
        left_s = max(0.001, deadline - time.monotonic())
        with own_errors():
            request = inference_request(bundle, arrays, left_s, options)
            result = self._client.infer(**request, client_timeout=left_s)
        return read_outputs(bundle, arrays, result, options)

    def _load(self) -> None:
        """The newest version that Triton has ready, checked against the bundle in the repository."""
        with own_errors():
            version = newest(self._client.get_model_metadata(self._name, client_timeout=self._timeout_s))
            bundle, digest = load_bundle(self._repository, self._name, version)
            config = self._client.get_model_config(self._name, version, client_timeout=self._timeout_s).config
        check_config(bundle, digest, config)
        self._model = bundle, digest, load_processor(self._repository, bundle)
