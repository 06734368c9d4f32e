"""How many replicas a rate of requests needs: measured service times, and the arithmetic from them.

    python -m benchmarks.capacity measure [--seconds 20]     # writes benchmarks/capacity.json
    python -m benchmarks.capacity sheet                      # prints the tables of docs/capacity.md from it

Processor seconds per request are measured, since they are valid on a busy machine too; a replica's rate is its cores
divided by them.
"""

import argparse
import json
import math
import platform
from pathlib import Path
from typing import Any

import psutil

from benchmarks.lib.service import EXPRESSIONS, PICTURE, REPOSITORY, form, serve
from benchmarks.load import closed
from referent.core.bundle import load_bundle

MODEL = "mini"
FILE = Path("benchmarks/capacity.json")
RATES = (10, 1_000, 100_000)
TARGET = 0.6  # of a replica's capacity: the rest is for peaks, and for the replica that is lost
GATEWAY_CORES, TRITON_CORES = 1, 4  # of a replica: an event loop fills one; the limit in base/triton.yaml
NIC_BITS_PER_S = 10e9
# LLaVA-1.5-7B, one image, 600 tokens: twice the parameters for each token; the CLIP encoder sees 577 patches
LLAVA_FLOP = 2 * 6.74e9 * 600 + 2 * 0.304e9 * 577
GPU_FLOPS = {"L4": 121e12, "A100": 312e12, "H100": 989e12}  # dense fp16, NVIDIA's data sheets
GPU_EFFICIENCY = 0.4  # of the data sheet's figure: an assumption, not a measurement


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def measure(seconds: float) -> dict[str, Any]:
    """Closed-loop load on a service started here, for each number of clients."""
    body, levels = form(PICTURE.read_bytes(), EXPRESSIONS[:1], MODEL), dict[int, dict[str, float | None]]()
    with serve() as served:
        gateway = psutil.Process(served.process.pid)
        for clients in (1, 4, 8, 16):
            triton = gateway.children(recursive=True)
            before = cpu_s(gateway), sum(map(cpu_s, triton))
            load = closed(served.url, [body], clients, seconds, warm_up_s=0)  # processor time is of all requests
            count = len(load.answers)
            if load.statuses.keys() != {200}:
                raise RuntimeError(f"not every request was answered: {dict(load.statuses)} by status")
            levels[clients] = {
                "requests": count,
                "requests_per_s": load.per_s,
                "p50_ms": load.percentile(50),
                "p99_ms": load.percentile(99),
                "gateway_cpu_ms": 1000 * (cpu_s(gateway) - before[0]) / count,
                "triton_cpu_ms": 1000 * (sum(map(cpu_s, triton)) - before[1]) / count,
            }
            print(clients, levels[clients], flush=True)
    bundle, _ = load_bundle(REPOSITORY, MODEL)
    square = bundle.image.size**2 * 3
    return {
        "machine": f"{psutil.cpu_count()} cores, {platform.machine()}",
        "request_bytes": len(body.content),
        "triton_request_bytes": square + 3 * 8 * bundle.buckets[0].tokens,
        "clients": levels,
    }


def sheet(measured: dict[str, Any]) -> str:
    """The tables of docs/capacity.md."""
    lines = [
        "| clients | requests/s | p50 ms | p99 ms | gateway CPU ms/request | Triton CPU ms/request |",
        "|---|---|---|---|---|---|",
    ]
    columns = ("requests_per_s", "p50_ms", "p99_ms", "gateway_cpu_ms", "triton_cpu_ms")
    for clients, level in measured["clients"].items():
        lines.append(f"| {clients} | " + " | ".join(f"{level[column]:.1f}" for column in columns) + " |")
    busiest = list(measured["clients"].values())[-1]
    gateway_rate = GATEWAY_CORES * 1000 / busiest["gateway_cpu_ms"]
    triton_rate = TRITON_CORES * 1000 / busiest["triton_cpu_ms"]
    nic_rate = NIC_BITS_PER_S / 8 / max(measured["request_bytes"], measured["triton_request_bytes"])
    lines += [
        "",
        "| a replica | arithmetic | requests/s at most | at 60 % |",
        "|---|---|---|---|",
        _row("gateway", f"{GATEWAY_CORES} core x 1000 / {busiest['gateway_cpu_ms']:.1f} ms", gateway_rate),
        _row("Triton, mini on CPU", f"{TRITON_CORES} cores x 1000 / {busiest['triton_cpu_ms']:.1f} ms", triton_rate),
        _row("NIC of 10 Gbit/s", f"1.25 GB / {measured['triton_request_bytes'] / 1000:.0f} kB to Triton", nic_rate),
    ]
    gpu_rates = {name: GPU_EFFICIENCY * flops / LLAVA_FLOP for name, flops in GPU_FLOPS.items()}
    for name, rate in gpu_rates.items():
        lines.append(
            _row(
                f"Triton, LLaVA-1.5-7B on {name} (estimate)",
                f"{GPU_EFFICIENCY} x {GPU_FLOPS[name] / 1e12:.0f} / {LLAVA_FLOP / 1e12:.1f} TFLOP",
                rate,
            )
        )
    names = ", ".join(gpu_rates)
    lines += [
        "",
        f"| requests/s | gateways | Tritons, mini on CPU | GPUs, LLaVA-1.5-7B on {names} |",
        "|---|---|---|---|",
    ]
    for rate in RATES:
        gpus = ", ".join(_replicas(rate, each) for each in gpu_rates.values())
        lines.append(f"| {rate:,} | {_replicas(rate, gateway_rate)} | {_replicas(rate, triton_rate)} | {gpus} |")
    return "\n".join(lines) + "\n"


def _row(name: str, arithmetic: str, rate: float) -> str:
    return f"| {name} | {arithmetic} | {rate:,.0f} | {TARGET * rate:,.0f} |"


def _replicas(rate: float, each: float) -> str:
    """At least two, so that the loss of one is survived."""
    return f"{max(2, math.ceil(rate / (TARGET * each))):,}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["measure", "sheet"])
    parser.add_argument("--seconds", type=float, default=20, help="of load, for each number of clients")
    arguments = parser.parse_args()
    if arguments.command == "measure":
        FILE.write_text(json.dumps(measure(arguments.seconds), indent=1) + "\n")
    print(sheet(json.loads(FILE.read_text())))


if __name__ == "__main__":
    main()
