"""The least that a gateway in Python has to do, as a bare ASGI function: `benchmarks.stages` measures it.

    python -m benchmarks.lib.bare_server MODEL --model-repository DIR --grpc-url URL --fd SOCKET

It splits the form by hand, decodes and preprocesses in a thread, asks Triton by grpc.aio, and writes the tensors. It
has no validation, no admission, no deadlines, no metrics and no log.
"""

import argparse
import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import uvicorn
from tritonclient.grpc.aio import InferenceServerClient

from benchmarks.lib.service import REPOSITORY, Subject, inference_inputs


def fields(body: bytes, content_type: bytes) -> dict[str, list[bytes]]:
    """The values of a form by name."""
    found: dict[str, list[bytes]] = {}
    for part in body.split(b"--" + content_type.partition(b"boundary=")[2])[1:-1]:
        head, _, value = part.partition(b"\r\n\r\n")
        name = head.partition(b'name="')[2].partition(b'"')[0].decode()
        found.setdefault(name, []).append(value.removesuffix(b"\r\n"))
    return found


def application(subject: Subject, grpc_url: str) -> Callable[..., Any]:
    """The function that uvicorn calls for each request."""
    client = cache(lambda: InferenceServerClient(grpc_url))  # made in the event loop

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message.get("more_body", False)
        form = fields(body, dict(scope["headers"])[b"content-type"])
        texts = [text.decode() for text in form["expression"]]
        arrays = await asyncio.to_thread(subject.arrays, form["image"][0], texts)
        result = await client().infer(subject.name, inference_inputs(subject, arrays), subject.bundle.version)
        tensors = {output.name: result.as_numpy(output.name).tolist() for output in subject.kind.steps[-1].outputs}
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(tensors).encode()})

    return answer


@contextmanager
def bare_server(subject: Subject, grpc_url: str) -> Iterator[tuple[str, int]]:
    """Its URL and its process, while it runs."""
    with socket.socket() as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # uvicorn does not for a socket that it is given
        listener.bind(("127.0.0.1", 0))
        listener.listen()  # so that a client may connect before the server accepts
        command = [sys.executable, "-m", "benchmarks.lib.bare_server", subject.name, "--grpc-url", grpc_url]
        command += ["--model-repository", str(subject.repository), "--fd", str(listener.fileno())]
        with subprocess.Popen(command, pass_fds=[listener.fileno()]) as process:
            try:
                yield f"http://127.0.0.1:{listener.getsockname()[1]}", process.pid
            finally:
                process.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--model-repository", type=Path, default=REPOSITORY)
    parser.add_argument("--grpc-url", required=True)
    parser.add_argument("--fd", type=int, required=True, help="of the socket to listen on")
    arguments = parser.parse_args()
    app = application(Subject(arguments.model_repository, arguments.model), arguments.grpc_url)
    uvicorn.run(app, fd=arguments.fd, http="h11", ws="none", lifespan="off", log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
