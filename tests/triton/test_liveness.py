"""When a model counts as stuck, by what a fake Triton answers and counts."""

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import grpc
import pytest

from referent.triton import liveness
from referent.triton.liveness import Liveness, StuckError, Watch
from tests.support.fake_triton import FakeTriton
from tests.support.http_server import serving
from tests.support.load import until


class Metrics:
    """What Triton's metrics say, and where."""

    def __init__(self) -> None:
        self.successes, self.waiting, self.active, self.passes = 0, 0, 0, 0
        self.looks = 0

    def text(self) -> str:
        self.looks += 1
        part, whole = ('{model="tiny_head",version="1"}', '{model="tiny",version="1"}')
        return "\n".join(
            [
                "# TYPE nv_inference_request_success counter",
                f"nv_inference_request_success{part} {self.successes}",
                f"nv_inference_request_success{whole} 0",
                f"nv_inference_pending_request_count{part} {self.waiting}",
                f"referent_generator_active{part} {self.active}",
                f"referent_generator_passes_total{part} {self.passes}",
            ]
        )


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def metrics_url(metrics: Metrics) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(metrics.text().encode())

        def log_message(self, *arguments: object) -> None:
            pass

    with serving(HTTPServer(("127.0.0.1", 0), Handler)) as url:
        yield f"{url}/metrics"


@pytest.fixture
def watched(repository: Path, triton_url: str, metrics_url: str, monkeypatch: pytest.MonkeyPatch) -> Liveness:
    """Has looked once, and its patience is over."""
    monkeypatch.setattr(liveness, "PATIENCE_S", 0.3)
    monkeypatch.setattr(liveness, "INTERVAL_S", 0.05)
    watched = Liveness(repository, triton_url, metrics_url, "tiny", ["tiny_head"], golden_s=0.01)
    watched.check()
    time.sleep(0.35)  # only time ends patience: nothing happens that could be awaited
    return watched


def test_idle_model_that_answers_is_well(watched: Liveness, triton: FakeTriton) -> None:
    watched.check()
    assert len(triton.requests) == 1


@pytest.mark.parametrize("code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN])
def test_model_that_answers_errors_is_stuck(watched: Liveness, triton: FakeTriton, code: grpc.StatusCode) -> None:
    triton.failures = [(code, "CUDA error 700: an illegal memory access was encountered")]
    with pytest.raises(StuckError, match="illegal memory access"):
        watched.check()


def test_model_that_answers_nonsense_is_stuck(watched: Liveness, triton: FakeTriton) -> None:
    triton.box = (float("nan"), 0, 0, 0)
    with pytest.raises(StuckError, match="finite"):
        watched.check()


def test_model_that_answers_nobody_while_requests_wait_is_stuck(
    watched: Liveness, triton: FakeTriton, metrics: Metrics
) -> None:
    triton.holds, metrics.waiting = True, 1
    with pytest.raises(StuckError, match="tiny_head: nothing for"):
        watched.check()
    triton.release()


def test_generator_that_makes_no_pass_is_stuck(watched: Liveness, triton: FakeTriton, metrics: Metrics) -> None:
    triton.holds, metrics.active = True, 1  # Triton counts no request as waiting
    with pytest.raises(StuckError, match="tiny_head: nothing for"):
        watched.check()
    triton.release()


@pytest.mark.parametrize("counted", ["waiting", "active"])
def test_model_that_is_full_and_finishes_none_is_stuck(
    watched: Liveness, triton: FakeTriton, metrics: Metrics, counted: str
) -> None:
    triton.failures = [(grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")]
    setattr(metrics, counted, 64)
    with pytest.raises(StuckError, match="tiny_head: nothing for"):
        watched.check()


@pytest.mark.parametrize(("counted", "grows"), [("waiting", "successes"), ("active", "passes")])
def test_model_that_finishes_some_is_overloaded_and_not_stuck(
    watched: Liveness, triton: FakeTriton, metrics: Metrics, counted: str, grows: str
) -> None:
    triton.holds = True
    setattr(metrics, counted, 40)
    ended = threading.Event()

    def go_on() -> None:
        while not ended.wait(0.02):
            setattr(metrics, grows, getattr(metrics, grows) + 1)

    thread = threading.Thread(target=go_on)
    thread.start()
    watched.check()
    ended.set()
    thread.join()
    triton.release()


@pytest.mark.parametrize(
    "failure",
    [
        (grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size"),
        (grpc.StatusCode.UNAVAILABLE, "Request for unknown model: 'tiny' is not found"),
        (grpc.StatusCode.UNAVAILABLE, "Socket closed"),
    ],
    ids=["full", "gone", "unreachable"],
)
def test_full_or_missing_model_is_for_others_to_see_to(
    watched: Liveness, triton: FakeTriton, failure: tuple[grpc.StatusCode, str]
) -> None:
    triton.failures = [failure]
    watched.check()


def test_server_that_says_nothing_at_all_is_stuck_as_a_whole(
    repository: Path, triton_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(liveness, "PATIENCE_S", 0.1)
    watched = Liveness(repository, triton_url, "http://127.0.0.1:9/metrics", "tiny", [], golden_s=0.01)
    watched.check()
    time.sleep(0.2)
    with pytest.raises(StuckError) as found:
        watched.check()
    assert found.value.whole


@pytest.fixture
def watch(repository: Path, triton_url: str, metrics_url: str, monkeypatch: pytest.MonkeyPatch) -> Watch:
    """What stands beside a Triton, started now."""
    monkeypatch.setattr(liveness, "PATIENCE_S", 0.3)
    monkeypatch.setattr(liveness, "INTERVAL_S", 0.05)
    monkeypatch.setattr(liveness, "timeout_s_of", lambda bundle: 0.5)
    (repository / "tiny" / "9").mkdir()
    (repository / "tiny" / "9" / "bundle.json").write_text("{")  # nobody serves it
    watch = Watch(repository, triton_url, metrics_url, "tiny", None)
    threading.Thread(target=watch.run, daemon=True).start()
    return watch


def test_model_that_hung_before_the_watch_began_is_stuck(watch: Watch, triton: FakeTriton, metrics: Metrics) -> None:
    triton.holds, metrics.waiting = True, 2
    until(lambda: watch.stuck)
    assert (watch.ready, "requests wait" in watch.fault) == (False, True)
    triton.release()


def test_model_that_was_never_good_is_unready_and_not_stuck(watch: Watch, triton: FakeTriton) -> None:
    triton.box = (float("nan"), 0, 0, 0)
    until(lambda: "finite" in watch.fault)
    assert (watch.ready, watch.stuck) == (False, False)
    triton.box = (0.5, 0.5, 0.2, 0.2)
    until(lambda: watch.ready and not watch.fault)


def test_model_that_takes_long_to_begin_is_not_stuck(watch: Watch, triton: FakeTriton, metrics: Metrics) -> None:
    triton.holds = True
    until(lambda: metrics.looks > 20)
    assert not watch.stuck
    triton.release()
    until(lambda: watch.ready)
