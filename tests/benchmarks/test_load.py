"""The load generator against a server that answers every third request with 429."""

import itertools
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from benchmarks.lib.service import Body
from benchmarks.load import Load, TimedAnswer, closed, opened
from tests.support.http_server import serving

BODIES = [Body(b"one", {}), Body(b"two", {})]


class Server(ThreadingHTTPServer):
    """Remembers the bodies it got, and the most requests it had at once."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.turns, self.lock, self.bodies = itertools.count(), threading.Lock(), set[bytes]()
        self.current = self.most = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        with self.server.lock:
            self.server.current += 1
            self.server.most = max(self.server.most, self.server.current)
        self.server.bodies.add(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:  # before the answer, after which the client may ask again
            self.server.current -= 1
        self.send_response(429 if next(self.server.turns) % 3 == 2 else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None: ...


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(server := Server()):
        yield server


def test_closed_loop_has_so_many_requests_at_once(server: Server) -> None:
    load = closed(server.url, BODIES, clients=3, seconds=0.3)
    assert 1 <= server.most <= 3
    assert server.bodies == {b"one", b"two"}
    assert load.statuses.keys() == {200, 429}
    sent_in_warm_up = round(load.per_s * load.seconds) - load.statuses[200]  # and answered after it
    assert 0 <= sent_in_warm_up <= 3


def test_open_loop_sends_what_is_due_whatever_comes_back(server: Server) -> None:
    load = opened(server.url, BODIES, rate=200, seconds=0.5, seed=1)
    assert 60 < load.statuses.total() < 140 < len(load.answers)  # Poisson with mean 100; 300 with the warm-up
    assert load.statuses[429] > 10
    assert all(answer.due_s <= 0.5 for answer in load.answers)


def test_request_that_nobody_answers_has_status_0() -> None:
    load = opened("http://127.0.0.1:9", BODIES, rate=20, seconds=0.2, seed=1)
    assert set(load.statuses) == {0}
    assert load.per_s == 0


def test_goodput_counts_good_answers_in_time() -> None:
    load = Load(2, [TimedAnswer(0, 10, 200), TimedAnswer(0, 90, 200), TimedAnswer(1, 10, 429), TimedAnswer(1, 20, 200)])
    assert load.per_s == 1.5
    assert load.goodput(50) == 1


def test_rates_are_of_what_came_within_the_run() -> None:
    came_before, came_within, came_after = (
        TimedAnswer(-0.5, 400, 200),
        TimedAnswer(-0.5, 600, 200),
        TimedAnswer(1.9, 200, 200),
    )
    load = Load(2, [came_before, came_within, came_after, came_after])
    assert load.per_s == 0.5
    assert load.statuses == {200: 2}  # of the requests that were due in it
    assert load.percentile(50) == 200


def test_percentiles_stay_within_what_was_measured() -> None:
    load = Load(1, [TimedAnswer(0, 10, 200), TimedAnswer(0, 20, 200), TimedAnswer(0, 500, 429)])
    assert load.times() == {"p50 ms": 15, "p95 ms": pytest.approx(19.5), "p99 ms": pytest.approx(19.9)}
    assert Load(1, []).percentile(50) is None
