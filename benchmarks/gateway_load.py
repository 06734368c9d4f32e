"""What the service does beyond its capacity: arrivals at up to three times what it can answer.

    python -m benchmarks.gateway_load [--seconds 15] [--objective-ms 10000]

The capacity is what 16 clients in a closed loop get. Then requests arrive as in life (open loop, Poisson); what the
gateway doesn't take, it answers with 429 at once. Goodput is what is answered with 200 within the objective. Client
and service share the processor: at three times the load the client's own work takes from the service.
"""

from contextlib import ExitStack
from pathlib import Path

from benchmarks.load import Load, closed, opened
from benchmarks.measuring import Report, Row, arguments_of, lines
from benchmarks.service import EXPRESSIONS, PICTURE, REPOSITORY, Body, form, serve

OVERLOADS = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0)  # of the capacity
CLIENTS = 16
OBJECTIVE_MS = 10_000  # the gateway's own deadline; what it lets in waits its turn among 64


def measure(url: str, bodies: list[Body], seconds: float, overloads: tuple[float, ...]) -> tuple[float, list[Load]]:
    """The capacity, requests a second, and what came of each multiple of it."""
    capacity = closed(url, bodies, CLIENTS, seconds).per_s
    return capacity, [opened(url, bodies, capacity * overload, seconds) for overload in overloads]


def kept(capacity: float, loads: list[Load], objective_ms: float) -> float:
    """Goodput at the last load over the best of all, the closed loop's among them."""
    goodputs = [load.goodput(objective_ms) for load in loads]
    return goodputs[-1] / max(capacity, *goodputs)


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--model-repository", type=Path, default=REPOSITORY)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--seconds", type=float, default=15, help="of each load")
    parser.add_argument(
        "--objective-ms", type=float, default=OBJECTIVE_MS, help="an answer that comes later is worth nothing"
    )
    arguments = parser.parse_args()
    report = Report("gateway_load", arguments.out)
    bodies = [form(PICTURE.read_bytes(), EXPRESSIONS[:1], arguments.model)]
    with ExitStack() as stack:
        served = stack.enter_context(serve(arguments.model_repository, REFERENT_DEFAULT_MODEL=arguments.model))
        capacity, loads = measure(served.url, bodies, arguments.seconds, OVERLOADS)
    rows: list[Row] = []
    for overload, load in zip(OVERLOADS, loads, strict=True):
        due = load.statuses.total()
        rows.append(
            {"of capacity": overload, "offered/s": due / load.seconds, "answered 200/s": load.per_s}
            | {"goodput/s": load.goodput(arguments.objective_ms), "429 %": 100 * load.statuses[429] / due}
            | {"other": due - load.statuses[200] - load.statuses[429]}
            | load.times()
        )
    report.add(f"open loop; capacity {capacity:.1f}/s with {CLIENTS} clients in a closed loop", rows)
    share = kept(capacity, loads, arguments.objective_ms)
    report.add("shedding", [{"goodput at 3x over its peak": share, "goal": ">= 0.9"}])
    report.chart(lambda axes: lines(axes, rows, "offered/s", "goodput/s"))


if __name__ == "__main__":
    main()
