"""Triton's settings on this machine: queue delay, instances, threads and their spinning, all side by side.

    python -m benchmarks.batching [--delays 0 1000] [--instances 1 2] [--threads 1 2] [--spinning 0 1]

One server for each setting, all running at once and measured in turns: latency of one client, images/s of eight.
"""

import itertools
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from tritonclient.grpc.model_config_pb2 import ModelConfig

from benchmarks.lib.measuring import Report, Row, alternate, arguments_of, flat, lines, summary
from benchmarks.lib.service import EXPRESSIONS, PICTURE, REPOSITORY, Ensemble, Subject
from export.publish import republish
from referent.core.kind import Arrays
from runtime.launcher import TritonServer

CLIENTS = 8


class Setting(NamedTuple):
    """Settings, the same for all parts of a model."""

    delay_us: int
    instances: int
    threads: int
    spinning: int


def with_setting(subject: Subject, setting: Setting, copy: Path) -> Path:
    """A copy of the repository whose parts have the setting."""

    def change(config: ModelConfig) -> None:
        config.dynamic_batching.max_queue_delay_microseconds = setting.delay_us
        config.instance_group[0].count = setting.instances
        config.parameters["intra_op_thread_count"].string_value = str(setting.threads)
        config.parameters["session.intra_op.allow_spinning"].string_value = str(setting.spinning)

    republish(subject.repository, subject.name, subject.bundle.version, copy, change)
    return copy


def images_per_s(ensembles: list[Ensemble], arrays: Arrays, seconds: float) -> float:
    """Images per second in a closed loop, with a thread for each ensemble client."""
    end = time.perf_counter() + seconds

    def ask(ensemble: Ensemble) -> int:
        count = 0
        while time.perf_counter() < end:
            ensemble(arrays)
            count += 1
        return count

    start = time.perf_counter()
    with ThreadPoolExecutor(len(ensembles)) as pool:
        answered = sum(pool.map(ask, ensembles))
    return answered / (time.perf_counter() - start)


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--model-repository", type=Path, default=REPOSITORY)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--delays", type=int, nargs="+", default=[0, 1000], help="microseconds")
    parser.add_argument("--instances", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--spinning", type=int, nargs="+", choices=[0, 1], default=[0], help="of waiting threads")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=20, help="in a block")
    parser.add_argument("--seconds", type=float, default=4, help="of a round's load")
    arguments = parser.parse_args()
    report = Report("batching", arguments.out)
    subject = Subject(arguments.model_repository, arguments.model)
    arrays = subject.arrays(PICTURE.read_bytes(), EXPRESSIONS[:1])
    values = arguments.delays, arguments.instances, arguments.threads, arguments.spinning
    settings = [Setting(*setting) for setting in itertools.product(*values)]
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        clients: dict[Setting, list[Ensemble]] = {}
        for setting in settings:
            copy = with_setting(subject, setting, directory / "-".join(map(str, setting)))
            server = stack.enter_context(TritonServer(copy, [subject.name], device="cpu"))
            clients[setting] = [stack.enter_context(Ensemble(subject, server.grpc_url)) for _ in range(CLIENTS)]
        paths = {str(setting): lambda own=own: own[0](arrays) for setting, own in clients.items()}
        times = alternate(paths, arguments.rounds, arguments.calls)
        rates: dict[Setting, list[float]] = {setting: [] for setting in settings}
        for _ in range(arguments.rounds):
            for setting, own in clients.items():
                rates[setting].append(images_per_s(own, arrays, arguments.seconds))
    rows: list[Row] = []
    for setting in settings:
        latency = summary(flat(times[str(setting)]))
        rows.append(
            setting._asdict()
            | {"p50 ms, 1 client": latency["p50"], "p95 ms": latency["p95"]}
            | {f"images/s, {CLIENTS} clients": statistics.median(rates[setting])}
        )
    report.add("ensemble over gRPC, one expression", rows)
    named = [row | {"setting": str(tuple(setting))} for setting, row in zip(settings, rows, strict=True)]
    rate = f"images/s, {CLIENTS} clients"
    report.chart(lambda axes: lines(axes, named, "p50 ms, 1 client", rate, "setting", ylim=None))


if __name__ == "__main__":
    main()
