"""The same small model served in other ways: images per second, latency at equal load, goodput.

    python -m benchmarks.peers [--checkpoint DIR] [--text-checkpoint DIR] [--clients 1 4 16 64]

(a) eager: FastAPI and PyTorch, one request at a time, as visual-grounding-api does; (b) litserve: LitServe with
batches of up to eight; (c) text: the box written by transformers' generate with a KV cache, one request at a time;
(d) referent: Triton and the gateway. All take the same pictures as the same JSON. Checkpoints come from runs/mini.sh
and runs/modes.sh; with them, (a), (b) and (d) must give the same boxes, and the share of valid boxes of (c) is shown.
Without, weights are random, which does not affect times: boxes aren't compared, and (c) writes as many tokens as a
trained model.
"""

import base64
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.lib.measuring import Report, Row, arguments_of, lines
from benchmarks.lib.service import REPOSITORY, Body, serve
from benchmarks.load import Load, closed, opened
from runtime.launcher import free_port

SAMPLES = Path("tests/samples")
EAGER, LITSERVE, TEXT, OURS = "(a) eager", "(b) litserve", "(c) text", "(d) referent"
SERVERS = {EAGER: "eager", LITSERVE: "litserve", TEXT: "text"}
TEXT_TOKENS = 25  # of an answer such as `[0.12, 0.30, 0.45, 0.80]`, with its end
# as ours: threads that wait for work sleep, or a busy machine has PyTorch's spin against each other
THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
SAME_PIXELS = 0.01  # two implementations of the same weights
STEPS_OF_CAPACITY = (0.5, 0.7, 0.9)  # open-loop loads among which the best goodput is looked for
START_TIMEOUT_S = 120


class SampleQuestion(NamedTuple):
    """A picture and what is asked about it."""

    picture: str
    expression: str
    body: Body


def questions() -> list[SampleQuestion]:
    """One for each sample picture."""
    made = []
    for case in json.loads((SAMPLES / "samples.json").read_text()):
        expression = f"the {next(iter(case['objects']))}"
        image = {"base64": base64.b64encode((SAMPLES / case["image"]).read_bytes()).decode()}
        content = json.dumps({"image": image, "expressions": [expression]}).encode()
        made.append(SampleQuestion(case["image"], expression, Body(content, {"Content-Type": "application/json"})))
    return made


def ask(url: str, body: Body) -> dict[str, Any]:
    """The answer, parsed."""
    request = urllib.request.Request(f"{url}/v1/ground", body.content, body.headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        answer: dict[str, Any] = json.load(response)
        return answer


@contextmanager
def peer(name: str, checkpoint: Path, tokens: int | None, body: Body) -> Iterator[str]:
    """A peer's server, as its URL once it answers. Raises RuntimeError if it ends before."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.lib.peer_servers", SERVERS[name], str(checkpoint), "--port", str(port)]
    command += ["--tokens", str(tokens)] if tokens else []
    variables = os.environ | THREADS
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=errors, env=variables, start_new_session=True
        ) as process,
    ):
        try:
            url = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + START_TIMEOUT_S
            while True:
                try:
                    ask(url, body)
                    break
                except urllib.error.URLError:
                    if process.poll() is not None or time.monotonic() > deadline:
                        errors.seek(0)
                        raise RuntimeError(f"{name} did not start:\n{errors.read()[-2000:]}") from None
                    time.sleep(0.2)
            yield url
        finally:
            with suppress(ProcessLookupError):  # it ended
                os.killpg(process.pid, signal.SIGKILL)  # and LitServe's workers, which outlive a signal to it alone
            process.wait()


@contextmanager
def servers(
    names: list[str], repository: Path, model: str, checkpoint: Path | None, text_checkpoint: Path | None
) -> Iterator[dict[str, str]]:
    """All of them, running at the same time; the value is their URLs."""
    body = questions()[0].body
    with ExitStack() as stack:
        from benchmarks.lib.checkpoints import save_random, spec_like

        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        urls = {}
        for name in names:
            if name == OURS:
                urls[name] = stack.enter_context(serve(repository, REFERENT_DEFAULT_MODEL=model)).url
                continue
            given = text_checkpoint if name == TEXT else checkpoint
            tokens = TEXT_TOKENS if name == TEXT and not given else None
            used = given or save_random(directory / name, *spec_like(repository, model, text=name == TEXT))
            urls[name] = stack.enter_context(peer(name, used, tokens, body))
        yield urls


def answers(urls: dict[str, str]) -> list[Row]:
    """How far each peer's boxes are from ours, how many are boxes, and what (c) writes. Raises RuntimeError where (a)
    or (b) finds others than ours."""
    asked = questions()
    found = {name: [ask(url, question.body) for question in asked] for name, url in urls.items()}
    ours = [answer["results"][0]["box_xyxy"] for answer in found[OURS]]
    rows: list[Row] = []
    for name, replies in found.items():
        boxes = [reply["results"][0]["box_xyxy"] for reply in replies]
        valid = [None not in box for box in boxes]
        worst = max(
            (max(map(_distance, box, own)) for box, own, fine in zip(boxes, ours, valid, strict=True) if fine),
            default=None,
        )
        if name in (EAGER, LITSERVE) and (worst is None or worst > SAME_PIXELS):
            raise RuntimeError(f"{name} and (d) find other boxes ({worst} pixels apart): not the same weights")
        tokens = [reply["tokens"] for reply in replies if "tokens" in reply]
        rows.append(
            {"server": name, "pictures": len(asked), "valid boxes": sum(valid), "furthest from (d), pixels": worst}
            | {"tokens written": f"{min(tokens)} to {max(tokens)}" if tokens else 0}
        )
    return rows


def throughput(urls: dict[str, str], clients: list[int], seconds: float, rounds: int) -> dict[tuple[str, int], Load]:
    """Closed loop, rounds alternating between the servers."""
    bodies = [question.body for question in questions()]
    loads: dict[tuple[str, int], Load] = {}
    for count in clients:
        for _ in range(rounds):
            for name, url in urls.items():
                load = closed(url, bodies, count, seconds)
                before = loads.get((name, count), Load(0, []))
                loads[name, count] = Load(before.seconds + load.seconds, before.answers + load.answers)
    return loads


def _distance(a: float, b: float) -> float:
    return abs(a - b)


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--model-repository", type=Path, default=REPOSITORY)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--checkpoint", type=Path, help="of the served model")
    parser.add_argument("--text-checkpoint", type=Path, help="one that answers in text")
    parser.add_argument("--peers", nargs="+", choices=list(SERVERS.values()), default=list(SERVERS.values()))
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--seconds", type=float, default=8, help="of each load")
    parser.add_argument("--rounds", type=int, default=2, help="of the closed loop")
    parser.add_argument("--objective-ms", type=float, default=250, help="an answer that comes later doesn't count")
    arguments = parser.parse_args()
    report = Report("peers", arguments.out)
    names = [name for name, server in SERVERS.items() if server in arguments.peers] + [OURS]
    bodies = [question.body for question in questions()]
    with servers(
        names, arguments.model_repository, arguments.model, arguments.checkpoint, arguments.text_checkpoint
    ) as urls:
        if arguments.checkpoint:
            report.add("answers", answers(urls))
        loads = throughput(urls, arguments.clients, arguments.seconds, arguments.rounds)
        rows: list[Row]
        closed_rows: list[Row] = []
        for (name, count), load in loads.items():
            ratio = loads[OURS, count].per_s / load.per_s if load.per_s else None
            row = {"server": name, "clients": count, "images/s": load.per_s, "(d) is times as fast": ratio}
            closed_rows.append(row | {"failed": load.failed} | load.times())
        report.add("closed loop", closed_rows)
        best = {name: max(load.per_s for (own, _), load in loads.items() if own == name) for name in names}
        for title, rate in (
            ("half of what (a) can do", best[EAGER] / 2 if EAGER in best else best[OURS] / 4),
            ("half of the slowest", min(best.values()) / 2),
        ):
            calm = {name: opened(url, bodies, rate, arguments.seconds) for name, url in urls.items()}
            rows = [{"server": name, "failed": load.failed} | load.times() for name, load in calm.items()]
            report.add(f"equal load, open loop, {rate:.1f} requests/s: {title}", rows)
        rows = []
        for name, url in urls.items():
            for step in STEPS_OF_CAPACITY:
                load = opened(url, bodies, best[name] * step, arguments.seconds)
                row = {"server": name, "offered/s": best[name] * step, "of its capacity": step}
                rows.append(row | {"goodput/s": load.goodput(arguments.objective_ms)} | load.times())
        report.add(f"goodput: answered within {arguments.objective_ms:g} ms, open loop", rows)
        best_goodput = {name: max(row["goodput/s"] for row in rows if row["server"] == name) for name in names}
        report.add(
            "best goodput", [{"server": name, "images/s in time": value} for name, value in best_goodput.items()]
        )
    report.chart(lambda axes: lines(axes, closed_rows, "clients", "images/s", "server", xscale="log"))


if __name__ == "__main__":
    main()
