"""Detects a model that is stuck, as opposed to busy, and reports it to Kubernetes, which restarts its Triton.

    python -m referent.triton.liveness MODELS NAME --port 8003

stands beside a Triton: `/live` is 503 once the model is stuck, `/ready` is 200 from its first golden inference on.
Triton itself reports ready even while every inference fails or none returns.
"""

import argparse
import logging
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TypeVar

import httpx
from tritonclient.grpc import InferenceServerClient

from referent.core.bundle import BundleError, load_bundle
from referent.triton.golden import probe, timeout_s_of
from referent.triton.protocol import (
    FROZEN,
    PassingInternalError,
    TritonBusyError,
    TritonError,
    TritonUnavailableError,
    newest,
    own_errors,
)

INTERVAL_S = 2.0
PATIENCE_S, PATIENCE_GOLDENS = 10, 5
LOOKUP_TIMEOUT_S = 5
FIRST_GOLDEN_S = 3600.0  # a startup probe ends what takes too long
# to Triton, a generator's requests do not wait: the generator counts them, and its passes, itself
PROGRESS = ("nv_inference_request_success", "referent_generator_passes_total")
WAITING = ("nv_inference_pending_request_count", "referent_generator_waiting", "referent_generator_active")
SAMPLE = re.compile(rf'^({"|".join(PROGRESS + WAITING)}){{.*?model="([^"]+)".*?}} (\S+)$', re.MULTILINE)


Result = TypeVar("Result")

logger = logging.getLogger(__name__)


class StuckError(RuntimeError):
    """The model no longer answers. `whole`: its server doesn't either."""

    def __init__(self, fault: str, whole: bool = False) -> None:
        super().__init__(fault)
        self.whole = whole


class WrongError(StuckError):
    """The model answers, but wrongly."""


class Liveness:
    """Watches a served model and its parts. `golden_s` is the time of its golden inference without other requests."""

    def __init__(
        self,
        repository: Path,
        grpc_url: str,
        metrics_url: str,
        name: str,
        parts: Sequence[str],
        golden_s: float,
        least_patience_s: float | None = None,
    ) -> None:
        self._repository, self._url, self._metrics_url, self._name = repository, grpc_url, metrics_url, name
        self._parts, self.golden_s, self._least_patience_s = parts, golden_s, least_patience_s
        # one for all checks: the TLS context of a client takes 20 ms to make; no connection is kept, Triton may restart
        self._http = httpx.Client(
            timeout=LOOKUP_TIMEOUT_S, trust_env=False, limits=httpx.Limits(max_keepalive_connections=0)
        )
        self._answered = time.monotonic()  # the last sign of life of the server, and of each of its models
        self._moved: dict[str, float] = {}
        self._progress: dict[str, float] = {}

    @property
    def patience_s(self) -> float:
        """For how many seconds no request may be finished while requests wait."""
        return max(self._least_patience_s or PATIENCE_S, PATIENCE_GOLDENS * self.golden_s)

    def check(self) -> None:
        """Runs the golden inference if nothing was answered for a while.

        Raises `StuckError` if it fails, or if it does not return while requests wait at a part that finishes none: a
        part that is only overloaded finishes some.
        """
        try:
            waiting = self._look()
        except (httpx.HTTPError, OSError) as error:
            if self._since(self._answered) > self.patience_s:
                raise StuckError(f"the server's metrics do not answer: {error!r}", whole=True) from error
            return
        if self._since(self._moved[self._name]) < self.patience_s:
            return
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(probe, self._repository, self._url, self._name, self.patience_s)
            while not wait([asked], timeout=INTERVAL_S).done:
                try:
                    waiting = self._look()
                except (httpx.HTTPError, OSError):
                    continue
        try:
            asked.result()
        except (TimeoutError, TritonBusyError) as error:
            if stuck := [part for part in waiting if self._since(self._moved[part]) > self.patience_s]:
                raise StuckError(
                    f"{', '.join(stuck)}: nothing for {self.patience_s:.0f} s, and requests wait"
                ) from error
        except PassingInternalError as error:
            if FROZEN in str(error).lower():  # a process that died is brought back sooner
                raise StuckError(f"a process of the model is frozen: {error}") from error
        except (TritonUnavailableError, BundleError):
            pass  # others see to that
        except TritonError as error:
            raise WrongError(f"the golden inference fails: {error}") from error

    def _look(self) -> list[str]:
        """Records what has moved on since the last check; returns the parts at which requests wait."""
        text = self._http.get(self._metrics_url).raise_for_status().text
        now = self._answered = time.monotonic()
        progress, waiting = (dict.fromkeys([self._name, *self._parts], 0.0) for _ in range(2))
        for metric, model, value in SAMPLE.findall(text):
            counted = progress if metric in PROGRESS else waiting
            if model in counted:
                counted[model] += float(value)  # over the versions
        for model, count in progress.items():
            if self._progress.get(model) != count:
                self._moved[model] = now
        self._progress = progress
        return [part for part in self._parts if waiting[part]]

    def _since(self, moment: float) -> float:
        return time.monotonic() - moment


class Watch:
    """What the HTTP server says: `fault`, and whether it is one that a restart may mend."""

    def __init__(
        self, repository: Path, grpc_url: str, metrics_url: str, name: str, least_patience_s: float | None
    ) -> None:
        self._places, self._least_patience_s = (repository, grpc_url, metrics_url, name), least_patience_s
        self.ready, self.stuck, self.fault = False, False, ""

    def run(self) -> None:
        """Watches for ever. A model that hangs before its first golden inference is stuck, too: this may have started
        later than the model. One that fails it was never good."""
        parts, limit_s = self._until(self._find)
        liveness = Liveness(*self._places, parts, limit_s / PATIENCE_GOLDENS, self._least_patience_s)
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(self._until, self._ask)
            while True:
                time.sleep(INTERVAL_S)
                if first.done() and not self.ready:
                    liveness.golden_s = first.result()
                    self.ready, self.fault = True, ""
                try:
                    liveness.check()
                    self.stuck, self.fault = False, "" if self.ready else self.fault
                except StuckError as error:
                    self.stuck, self.fault = self.ready or not isinstance(error, WrongError), str(error)
                except Exception:  # of the repository's file system, say: it does not mean that the model is stuck
                    logger.exception("looking at the model failed; trying again")

    def _until(self, succeeds: Callable[[], Result]) -> Result:
        """What it returns, once it does."""
        pause_s = INTERVAL_S
        while True:
            time.sleep(pause_s)
            try:
                return succeeds()
            except Exception as error:  # none may end the watch
                self.fault = f"{type(error).__name__}: {error}"
                pause_s = min(2 * pause_s, 30)

    def _find(self) -> tuple[list[str], float]:
        """The model's parts, and the limit of its golden inference in seconds."""
        repository, url, _, name = self._places
        with InferenceServerClient(url) as client, own_errors():
            config = client.get_model_config(name, client_timeout=LOOKUP_TIMEOUT_S).config
            version = newest(client.get_model_metadata(name, client_timeout=LOOKUP_TIMEOUT_S))
        bundle, _ = load_bundle(repository, name, version)
        return [step.model_name for step in config.ensemble_scheduling.step], timeout_s_of(bundle)

    def _ask(self) -> float:
        """How many seconds a golden inference takes."""
        repository, url, _, name = self._places
        start = time.monotonic()
        probe(repository, url, name, FIRST_GOLDEN_S)
        return time.monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m referent.triton.liveness", description="Says over HTTP whether a Triton's model is stuck."
    )
    parser.add_argument("repository", type=Path)
    parser.add_argument("name", help="of the model")
    parser.add_argument("--grpc", default="127.0.0.1:8001")
    parser.add_argument("--metrics", default="http://127.0.0.1:8002/metrics")
    parser.add_argument("--port", type=int, default=8003)
    parser.add_argument(
        "--patience", type=float, metavar="S", help=f"how long nothing may be answered at least; default: {PATIENCE_S}"
    )
    args = parser.parse_args()
    watch = Watch(args.repository, args.grpc, args.metrics, args.name, args.patience)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            healthy = {"/live": not watch.stuck, "/ready": watch.ready and not watch.fault}
            if self.path not in healthy:
                self.send_error(404)
                return
            body = f"{watch.fault or 'ok'}\n".encode()
            self.send_response(200 if healthy[self.path] else 503)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass  # probes ask every few seconds

    with ThreadingHTTPServer(("", args.port), Handler) as server:
        Thread(target=watch.run, daemon=True).start()
        server.serve_forever()


if __name__ == "__main__":
    main()
