"""What a server that the launcher started answers, and its processes."""

from contextlib import suppress

import psutil
from PIL import Image

from referent.triton.client import TritonClient
from referent.triton.protocol import TritonError
from runtime.launcher import TritonServer
from tests.support.load import process_of, until

PICTURE = Image.new("RGB", (100, 50))


def ground(server: TritonServer, name: str = "tiny") -> float:
    """Where the model sees its box: the centre's share of the width."""
    with TritonClient(server.grpc_url, name, server.model_repository, timeout_s=2) as client:
        return round(client.ground(PICTURE, "the cup").results[0].box_cxcywh_normalized[0], 3)


def answers(server: TritonServer, cx: float) -> bool:
    """Whether the box is there; False while requests fail."""
    try:
        return ground(server) == cx
    except (TritonError, TimeoutError):
        return False


def stubs(server: TritonServer, part: str = "") -> list[psutil.Process]:
    """The server's live stub processes."""
    live = []
    with suppress(psutil.NoSuchProcess):  # the server is being started again
        for child in process_of(server).children():
            with suppress(psutil.Error):  # one that ends meanwhile
                if child.name() == "triton_python_backend_stub" and part in " ".join(child.cmdline()):
                    live += [child] if child.cmdline() else []  # a zombie has none
    return live


def kill(server: TritonServer, cx: float) -> None:
    """Returns once the server that is started in its place finds the box where it was found."""
    process_of(server).kill()
    until(lambda: not answers(server, cx))
    until(lambda: answers(server, cx))
