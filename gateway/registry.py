"""The models being served: read from the repository, checked against Triton, and replaced when Triton changes them."""

import asyncio
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from gateway.telemetry import MODEL_INFO
from referent.core.bundle import Bundle, bundle_names, load_bundle
from referent.core.kind import Prepared
from referent.core.processor import Processor
from referent.kinds import load_processor
from referent.triton import golden
from referent.triton.aio import Triton
from referent.triton.protocol import TritonBusyError

STARTING_INTERVAL_S, LONGEST_INTERVAL_S = 0.5, 15  # between checks of models that are not ready; doubled each time

log = structlog.get_logger("gateway")


class UnknownModelError(LookupError):
    """No model of that name is in the repository."""


class NotReadyError(RuntimeError):
    """The model has not passed a golden inference yet."""


class DrainingError(NotReadyError):
    """The service is going down; it still answers."""


@dataclass(frozen=True)
class Model:
    """One version of a model; everything that must change together when the version does."""

    bundle: Bundle
    digest: str
    processor: Processor
    golden: Prepared = field(compare=False)  # of the golden inference


class Registry:
    """`models` are the versions that answer requests, `faults` the reasons why models are not ready, both by name;
    `draining` is true while the service is going down.

    Served are the models of `only`, all of which must be ready at the start, or by default all models of the repository
    that Triton has. Faults of `shadow` don't make the service unready. `golden_timeout_s` limits golden inferences; by
    default the limit depends on the model's size.
    """

    def __init__(
        self,
        repository: Path,
        triton: Triton,
        default_model: str,
        only: frozenset[str] = frozenset(),
        shadow: str | None = None,
        golden_timeout_s: float | None = None,
    ) -> None:
        self.models: dict[str, Model] = {}
        self.faults: dict[str, str] = {}
        self.draining = False
        self._repository, self._triton, self._default = repository, triton, default_model
        self._only, self._shadow, self._golden_timeout_s = only, shadow, golden_timeout_s
        self._refreshing: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._suspected = asyncio.Event()
        self._warned: dict[str, str] = {}
        self._passed: dict[str, list[Model]] = {}  # by name, the last two versions that passed a golden inference

    @property
    def ready(self) -> bool:
        """Whether requests can be sent here: there are models, the latest golden inference of each passed, and the
        service is not draining. A model that is only in the repository, new or broken, does not matter."""
        return bool(self.models.keys() - {self._shadow}) and not self._failing and not self.draining

    @property
    def _failing(self) -> set[str]:
        """The models that must be ready and are not."""
        return (self.faults.keys() - {self._shadow}) & (self.models.keys() | self._only)

    def check_ready(self) -> None:
        """Raises NotReadyError unless `ready`, saying why."""
        if self.draining:
            raise DrainingError("going down: ask another instance")
        if not self.ready:
            failing = sorted(self._failing or self.faults.keys())
            raise NotReadyError(
                f"not ready: {', '.join(failing) or 'no model in the repository'}; see the service's log"
            )

    @property
    def default_model(self) -> str | None:
        """The configured default, or the only model."""
        if self._default in {*self.models, *self.faults} - {self._shadow}:
            return self._default
        names = sorted((self.models or self.faults).keys() - {self._shadow})
        return names[0] if len(names) == 1 else None

    def get(self, name: str | None) -> Model:
        """The version to ask; the default model if `name` is None. Raises UnknownModelError, NotReadyError."""
        chosen = name or self.default_model
        if chosen in self.models:
            return self.models[chosen]
        if chosen in self.faults or not self.models:
            raise NotReadyError(f"{chosen or 'the model'} is not ready yet: try again soon")
        missing = f"no model {name!r}" if name else f"name a model: the default {self._default!r} is not served"
        raise UnknownModelError(f"{missing}; served are: {', '.join(sorted(self.models))}")

    async def refresh(self) -> None:
        """Brings all models up to date; errors are logged and recorded in `faults`."""
        names = sorted(self._only) or await asyncio.to_thread(bundle_names, self._repository)
        if self._shadow:
            names = sorted({*names, self._shadow})
        if not names:
            log.warning("no model in the repository", repository=str(self._repository))
        await asyncio.gather(*map(self.refresh_model, names))

    def suspect(self) -> None:
        """Has the models examined soon, after an inference failed in a way that suggests a broken model."""
        self._suspected.set()

    async def refresh_model(self, name: str, stale: Model | None = None) -> None:
        """The same for one model. With `stale`, it does nothing if another request has already replaced that version,
        and does not examine again a version that passed before."""
        async with self._refreshing[name]:
            current = self.models.get(name)
            if stale and current is not stale:
                return
            try:
                model = await self._newest(name, current, trusting=stale is not None)
            except TritonBusyError:  # the queue is full, but requests are being answered
                pass
            except Exception as error:  # no file and no answer may stop the service
                self._warn("model is not ready", name, error)
                self.faults[name] = str(error)
            else:
                self.faults.pop(name, None)
                if model is not current:
                    self.models[name] = model
                    MODEL_INFO.clear()
                    for each in self.models.values():
                        MODEL_INFO.labels(each.bundle.name, each.bundle.version, each.digest).set(1)
                passed = self._passed.get(name, [])
                if model not in passed:
                    self._passed[name] = [*passed, model][-2:]
                    log.info("serving", model=name, version=model.bundle.version, digest=model.digest)

    async def keep_fresh(self, interval_s: float, on_ready: Callable[[], None]) -> None:
        """Refreshes until cancelled; calls `on_ready` once, when all models are ready for the first time."""
        announced, quick_s = False, min(STARTING_INTERVAL_S, interval_s)
        pause_s = quick_s
        while True:
            if self.ready and not announced:
                announced = True
                on_ready()
            if self.ready:
                pause_s = quick_s
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._suspected.wait(), interval_s)
                    await asyncio.sleep(quick_s)  # many failures at once lead to one examination
            else:  # golden inferences must not overload a model that is becoming ready
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, max(LONGEST_INTERVAL_S, interval_s))
            self._suspected.clear()
            try:
                await self.refresh()
            except OSError:  # from the repository's file system, which may recover
                log.exception("looking for models failed; trying again")

    async def _newest(self, name: str, current: Model | None, trusting: bool) -> Model:
        """The version that Triton serves if it passes, else the current one if that passes. May raise any error."""
        try:
            model = await self._load(name)
            if not (trusting and model in self._passed.get(name, [])):
                await self._examine(model)
        except Exception as error:
            if current is None:
                raise
            await self._examine(current)
            self._warn("version refused, the one before stays", name, error)
            return current
        self._warned.pop(name, None)
        return model

    async def _load(self, name: str) -> Model:
        version = await self._triton.latest_version(name)
        bundle, digest = await asyncio.to_thread(load_bundle, self._repository, name, version)
        for known in self._passed.get(name, []):
            if known.digest == digest:
                return known
        processor = await asyncio.to_thread(load_processor, self._repository, bundle)
        return Model(bundle, digest, processor, await asyncio.to_thread(golden.prepare, processor))

    async def _examine(self, model: Model) -> None:
        """The golden inference: raises unless Triton serves this bundle and answers as its kind does."""
        await self._triton.check(model.bundle, model.digest)
        timeout_s = self._golden_timeout_s or golden.timeout_s_of(model.bundle)
        outputs = await self._triton.infer(model.bundle, model.golden, timeout_s)
        golden.check(model.processor, outputs)

    def _warn(self, event: str, name: str, error: Exception) -> None:
        """Logs a fault only when it is new, not at every refresh."""
        if self._warned.get(name) != str(error):
            self._warned[name] = str(error)
            log.warning(event, model=name, fault=f"{type(error).__name__}: {error}")
