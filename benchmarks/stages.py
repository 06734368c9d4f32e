"""What each layer adds: in-process ONNX Runtime, the Triton ensemble, a bare ASGI function, the gateway; with mini and
with a no-op model.

    python -m benchmarks.stages [--rounds 7] [--calls 40]

All are measured in one run, in alternating blocks. The no-op model has mini's tensors and computes nothing, so it shows
the layers' own cost. The gateway is compared with what a caller would do without it: decode and preprocess the image,
and ask Triton. The bare function (`benchmarks.lib.bare_server`) does as much behind HTTP, and nothing else. Processor
time of a request is that of the two servers' own processes.
"""

import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import psutil

from benchmarks.lib.bare_server import bare_server
from benchmarks.lib.measuring import (
    Blocks,
    Report,
    Row,
    alternate,
    arguments_of,
    bars,
    flat,
    median,
    over_rounds,
    spread,
)
from benchmarks.lib.measuring import summary as summary_of
from benchmarks.lib.service import (
    EXPRESSIONS,
    PICTURE,
    REPOSITORY,
    Ensemble,
    Gateway,
    InProcess,
    RunningService,
    Subject,
    form,
    serve,
    step_times,
)
from benchmarks.noop import NAME as NOOP
from benchmarks.noop import publish_noop

IN_PROCESS = "in-process ONNX Runtime"
ENSEMBLE = "Triton ensemble, gRPC"
WITHOUT_GATEWAY = "decode + preprocess + ensemble"
BARE = "bare ASGI function, HTTP"
GATEWAY = "gateway, HTTP"


def measure(
    repository: Path, name: str, served: RunningService, count: int, rounds: int, calls: int
) -> tuple[dict[str, Blocks], dict[str, float]]:
    """Times of the five paths for one picture with `count` expressions, and milliseconds of a processor that a request
    takes in the servers behind HTTP."""
    subject, data, expressions = Subject(repository, name), PICTURE.read_bytes(), EXPRESSIONS[:count]
    chain, arrays, body = InProcess(subject), subject.arrays(data, expressions), form(data, expressions, name)
    with (
        bare_server(subject, served.grpc_url) as (bare_url, bare_process),
        Ensemble(subject, served.grpc_url) as ensemble,
        Gateway(bare_url) as bare,
        Gateway(served.url) as gateway,
    ):
        paths = {
            IN_PROCESS: lambda: chain(arrays),
            ENSEMBLE: lambda: ensemble(arrays),
            WITHOUT_GATEWAY: lambda: ensemble(subject.arrays(data, expressions)),
            BARE: lambda: bare(body),
            GATEWAY: lambda: gateway(body),
        }
        times = alternate(paths, rounds, calls)
        servers = {BARE: bare_process, GATEWAY: served.process.pid}
        return times, {path: processor_ms(paths[path], pid, rounds * calls) for path, pid in servers.items()}


def processor_ms(call: Callable[[], object], pid: int, calls: int) -> float:
    """Milliseconds of a processor that a call takes in that process."""
    process = psutil.Process(pid)
    before = process.cpu_times()
    for _ in range(calls):
        call()
    after = process.cpu_times()
    return 1000 * (after.user + after.system - before.user - before.system) / calls


def overheads(times: dict[str, Blocks]) -> list[Row]:
    """Each layer compared with the one below, as a ratio and in milliseconds; medians for each round."""
    rows = []
    for what, above, below in (
        ("ensemble over in-process", ENSEMBLE, IN_PROCESS),
        ("gateway over decode + preprocess + ensemble", GATEWAY, WITHOUT_GATEWAY),
        ("bare ASGI function over decode + preprocess + ensemble", BARE, WITHOUT_GATEWAY),
        ("gateway over bare ASGI function", GATEWAY, BARE),
    ):
        pair = times[above], times[below]
        ratios, added = over_rounds(lambda a, b: a / b, *pair), over_rounds(lambda a, b: a - b, *pair)
        rows.append(
            {"layer": what, "ratio": spread(ratios), "added ms": spread(added)}
            | {"ratio of p50": median(times[above]) / median(times[below])}
            | {"added ms, p50": median(times[above]) - median(times[below])}
        )
    return rows


def with_noop(repository: Path, model: str, directory: Path) -> Path:
    """A copy of the repository with a no-op model like `model` beside it."""
    copy = directory / "model_repository"
    shutil.copytree(repository, copy)
    publish_noop(copy, model, copy)
    return copy


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--model-repository", type=Path, default=REPOSITORY)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=40, help="in a block")
    parser.add_argument("--expressions", type=int, nargs="+", default=[1, 8])
    arguments = parser.parse_args()
    report = Report("stages", arguments.out)
    rows: list[Row] = []
    layers: list[Row] = []
    clocks: list[Row] = []
    processors: list[Row] = []
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        repository = with_noop(arguments.model_repository, arguments.model, directory)
        served = stack.enter_context(serve(repository, REFERENT_DEFAULT_MODEL=arguments.model))
        for model in (arguments.model, NOOP):
            for count in arguments.expressions:
                times, processor = measure(repository, model, served, count, arguments.rounds, arguments.calls)
                key = {"model": model, "expressions": count}
                rows += [key | {"path": path} | summary_of(flat(blocks)) for path, blocks in times.items()]
                layers += [key | row for row in overheads(times)]
                processors += [key | {"server": path, "processor ms": ms} for path, ms in processor.items()]
            clocks += step_times(Subject(repository, model), served.grpc_url)
    report.add("milliseconds by path", rows)
    report.add("what a layer adds", layers)
    report.add("processor time of a request, without Triton's", processors)
    report.add("Triton's own clock, mean of all requests", clocks)
    first = arguments.expressions[0]
    named = {f"{row['model']}: {row['path']}": row["p50"] for row in rows if row["expressions"] == first}
    report.chart(lambda axes: bars(axes, named, f"median ms, {first} expression"))


if __name__ == "__main__":
    main()
