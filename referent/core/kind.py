"""What a kind of model is: its tensors, how a request is turned into them, and how its answer is read.

`referent.kinds` has a module for each. Other code calls these methods and never tests which kind it has.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from referent.core.answers import Answer, Gives
from referent.core.bundle import Bundle
from referent.core.contract import DETECTOR_INPUTS, PROMPTED_ENCODER, VISION_ENCODER, Step, Tensor
from referent.core.frame import Frame
from referent.core.grammar import MAX_INSTANCES as MAX_INSTANCES
from referent.core.prompts import PromptEncoder
from referent.core.spec import ModelSpec

Arrays = dict[str, npt.NDArray[Any]]  # tensors by name, the batch first


class Options(NamedTuple):
    """What a caller may ask for besides the expressions. A kind ignores options that don't apply to it."""

    max_instances: int | None = None  # of each expression, 1 to `MAX_INSTANCES`; None: the model's own default
    heatmap: bool = False


DEFAULTS = Options()


@dataclass(frozen=True)
class Prepared:
    """A request as tensors: expressions beyond the capacity of one inference fill further ones."""

    expressions: list[str]
    frame: Frame
    inferences: list[Arrays]
    options: Options = DEFAULTS


class Kind(ABC):
    """The steps of the ensemble, and the ensemble's inputs."""

    name: str
    steps: tuple[Step, ...]
    inputs: tuple[Tensor, ...]

    def of(self, spec: ModelSpec) -> Self:
        """This kind for one model: with the second picture among its inputs if the vision encoder needs it."""
        if spec.detector_image is None:
            return self
        kind = copy(self)
        kind.steps = tuple(PROMPTED_ENCODER if step is VISION_ENCODER else step for step in self.steps)
        kind.inputs = (*self.inputs, *DETECTOR_INPUTS)
        return kind

    @abstractmethod
    def outputs(self, bundle: Bundle) -> tuple[Tensor, ...]:
        """Those outputs of the ensemble that this model has."""

    def asked(self, bundle: Bundle, options: Options) -> tuple[Tensor, ...]:
        """Those of them that a request needs."""
        return self.outputs(bundle)

    @abstractmethod
    def gives(self, spec: ModelSpec) -> Gives:
        """What a referent of this model has."""

    @abstractmethod
    def several(self, spec: ModelSpec) -> bool:
        """Whether an expression can have several referents."""

    def heatmaps(self, spec: ModelSpec) -> bool:
        """Whether an answer can have a heat map."""
        return False

    @abstractmethod
    def inferences(
        self,
        spec: ModelSpec,
        encoder: PromptEncoder,
        image: npt.NDArray[np.uint8],
        expressions: Sequence[str],
        options: Options,
    ) -> list[Arrays]:
        """The ensemble's inputs for an image (S, S, 3) and its expressions, a batch of one for each inference.

        The second picture is added to them where the model needs it.

        Raises `referent.core.prompts.ExpressionError`.
        """

    def requests(self, spec: ModelSpec, expressions: int, options: Options) -> int:
        """How many requests an image with so many expressions counts as when the gateway limits its load."""
        return 1

    def with_timeout(self, arrays: Arrays, timeout_s: float) -> Arrays:
        """The inputs with the time limit added, for a kind whose steps can keep one."""
        return arrays

    @abstractmethod
    def answers(self, spec: ModelSpec, prepared: Prepared, outputs: Sequence[Arrays]) -> list[Answer]:
        """An answer for each expression, from the outputs of each inference."""

    def timings_ms(self, outputs: Sequence[Arrays]) -> dict[str, float]:
        """Times of the stages within inference, if the outputs have them; of parallel inferences the longest.

        The names are fields of `referent.core.api.Timings`.
        """
        return {}

    @abstractmethod
    def check_golden(self, outputs: Sequence[Arrays]) -> None:
        """Raises ValueError if no working model of this kind could give these outputs for the golden inference."""

    @abstractmethod
    def warm_ups(self, spec: ModelSpec) -> dict[str, dict[str, int]]:
        """The shapes that a server gets, each under a name: letters of tensors' shapes -> sizes."""

    def sizes(self, spec: ModelSpec) -> dict[str, int]:
        """The sizes that the spec gives for letters of tensors' shapes."""
        detector = {} if spec.detector_image is None else {"R": spec.detector_image.size}
        return {"S": spec.image.size, "K": spec.image_tokens, **detector}

    def step_outputs(self, step: Step, bundle: Bundle) -> tuple[Tensor, ...]:
        """The outputs of a step of this model that later steps or the caller need."""
        needed = {*self.outputs(bundle), *(tensor for later in self.steps for tensor in later.inputs)}
        return tuple(tensor for tensor in step.outputs if tensor in needed)
