"""Serves a model repository in the foreground: python -m runtime model_repository"""

import argparse
import logging
import signal
import sys
from functools import partial
from pathlib import Path

from referent.core.bundle import verify_files
from referent.triton.golden import probe
from runtime.launcher import TritonServer


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m runtime", description=__doc__)
    parser.add_argument("model_repository", type=Path)
    parser.add_argument("--model", action="append", help="an ensemble to serve; repeatable; default: all")
    parser.add_argument("--grpc-port", type=int, default=8001)
    parser.add_argument("--metrics-port", type=int, default=8002)
    parser.add_argument("--log", type=Path, help="file to append tritonserver's log to")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    ports = {"grpc_port": args.grpc_port, "metrics_port": args.metrics_port}
    asked = partial(probe, args.model_repository)
    try:
        with TritonServer(
            args.model_repository, args.model, log_path=args.log, verify=verify_files, probe=asked, **ports
        ) as server:
            logging.info("serving %s at %s, metrics at %s", server.models, server.grpc_url, server.metrics_url)
            signal.pause()
    except KeyboardInterrupt:
        pass
    except RuntimeError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
