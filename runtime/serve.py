"""Serves a model repository in the foreground: python -m runtime model_repository"""

import argparse
import logging
import signal
import sys
from pathlib import Path

from referent.triton.repository import PlacementError, add_placement
from runtime.launcher import TritonServer


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m runtime", description=__doc__)
    parser.add_argument("model_repository", type=Path)
    parser.add_argument("--model", action="append", help="model to serve; can be repeated; default: all")
    parser.add_argument("--device", choices=("cpu", "gpu"), help="default: the GPU, if there is one to be used")
    add_placement(parser)
    parser.add_argument("--address", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--grpc-port", type=int, help="0: a free one; default: a Unix socket, for this user alone")
    parser.add_argument("--metrics-port", type=int, default=8002, help="0: a free one")
    parser.add_argument(
        "--shared-memory", action="store_true", help="let callers register shared memory, as perf_analyzer does"
    )
    parser.add_argument(
        "--load-timeout", type=float, metavar="S", help="limit for loading a model; default: by its size"
    )
    parser.add_argument(
        "--golden-timeout", type=float, metavar="S", help="limit of its golden inference; default: by its size"
    )
    parser.add_argument("--log", type=Path, help="file to append tritonserver's log to")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with TritonServer(
            args.model_repository,
            args.model,
            device=args.device,
            mode=args.mode,
            gpu_memory_gb=args.gpu_memory_gb,
            address=args.address,
            grpc_port=args.grpc_port,
            metrics_port=args.metrics_port,
            shared_memory=args.shared_memory,
            log_path=args.log,
            load_timeout_s=args.load_timeout,
            golden_timeout_s=args.golden_timeout,
        ) as server:
            logging.info("serving %s at %s, metrics at %s", server.models, server.grpc_url, server.metrics_url)
            signal.pause()
    except KeyboardInterrupt:
        pass
    except (RuntimeError, PlacementError) as error:
        sys.exit(str(error))
