"""The service beyond its capacity: requests arrive at up to three times the rate that it can answer.

    python -m benchmarks.gateway_load [--rounds 3] [--seconds 8] [--objective-ms 10000]

The capacity is the rate of 16 clients in a closed loop. Then requests arrive as in production (open loop, Poisson); the
gateway answers those that it can't accept with 429 at once. Goodput counts answers with 200 within the objective. The
loads alternate, since a machine is often faster in its first seconds. Client and service share the processor: at three
times the load, the client's own work slows down the service.
"""

import statistics
from contextlib import ExitStack
from pathlib import Path

from benchmarks.lib.measuring import Report, Row, arguments_of, lines
from benchmarks.lib.service import EXPRESSIONS, PICTURE, REPOSITORY, Body, form, serve
from benchmarks.load import Load, closed, opened

OVERLOADS = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0)  # of the capacity
CLIENTS = 16
CLOSED = "closed loop"
OBJECTIVE_MS = 10_000  # the gateway's own deadline; what it lets in waits its turn among 64

Loads = dict[float | str, list[Load]]


def measure(url: str, bodies: list[Body], seconds: float, overloads: tuple[float, ...], rounds: int) -> Loads:
    """Results of the closed loop and of each multiple of its rate, for each round."""
    capacity = closed(url, bodies, CLIENTS, seconds).per_s  # sets the rates, and isn't counted
    loads: Loads = {load: [] for load in (CLOSED, *overloads)}
    for _ in range(rounds):
        loads[CLOSED].append(closed(url, bodies, CLIENTS, seconds))
        for overload in overloads:
            loads[overload].append(opened(url, bodies, capacity * overload, seconds))
    return loads


def goodputs(loads: Loads, objective_ms: float) -> dict[float | str, float]:
    """Goodput of each load in requests per second, the mean of its rounds."""
    return {name: statistics.fmean(load.goodput(objective_ms) for load in rounds) for name, rounds in loads.items()}


def kept(loads: Loads, objective_ms: float) -> float:
    """Goodput at the last load divided by the best of all, including the closed loop's."""
    *others, last = goodputs(loads, objective_ms).values()
    return last / max(*others, last)


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--model-repository", type=Path, default=REPOSITORY)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8, help="of each load in a round")
    parser.add_argument(
        "--objective-ms", type=float, default=OBJECTIVE_MS, help="an answer that comes later is worth nothing"
    )
    arguments = parser.parse_args()
    report = Report("gateway_load", arguments.out)
    bodies = [form(PICTURE.read_bytes(), EXPRESSIONS[:1], arguments.model)]
    with ExitStack() as stack:
        served = stack.enter_context(serve(arguments.model_repository, REFERENT_DEFAULT_MODEL=arguments.model))
        loads = measure(served.url, bodies, arguments.seconds, OVERLOADS, arguments.rounds)
    rows: list[Row] = []
    for name, goodput in goodputs(loads, arguments.objective_ms).items():
        runs = loads[name]
        pooled = Load(sum(run.seconds for run in runs), [answer for run in runs for answer in run.answers])
        statuses, due = pooled.statuses, pooled.statuses.total()
        rows.append(
            {"of capacity": name, "offered/s": due / pooled.seconds, "goodput/s": goodput}
            | {"of each round": ", ".join(f"{run.goodput(arguments.objective_ms):.1f}" for run in runs)}
            | {"429 %": 100 * statuses[429] / due, "other": due - statuses[200] - statuses[429]}
            | pooled.times()
        )
    report.add(f"open loop, and {CLIENTS} clients in a closed loop; {arguments.rounds} rounds", rows)
    report.add("shedding", [{"goodput at 3x over its peak": kept(loads, arguments.objective_ms), "goal": ">= 0.9"}])
    report.chart(lambda axes: lines(axes, rows[1:], "offered/s", "goodput/s"))


if __name__ == "__main__":
    main()
