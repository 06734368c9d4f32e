"""A fleet on one machine: real Tritons on loopback addresses of their own, behind a real DNS name and one gateway."""

import shutil
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest
import tritonclient.grpc as triton

from export.publish import republish
from referent.core.bundle import load_bundle
from runtime.launcher import TritonServer
from tests.support.load import Load, gateway, load, parts_of, process_of, until
from tests.support.nameserver import Nameserver
from tests.support.tiny import copy_mini

RECONNECT_S = 5  # the gateway looks the name up as often; no shorter than its deadline


class Fleet:
    """Tritons that share a port, and the gateway's URL for all: a name like a headless Service's, of the ready ones."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack, self._name, self._count = stack, Nameserver(), 0
        self._name.addresses.clear()
        self._name.start()
        stack.callback(self._name.socket.sendto, b"", self._name.socket.getsockname())
        with socket.create_server(("127.0.0.2", 0)) as listener:
            self._port = listener.getsockname()[1]
        # gRPC asks the server that is named in the URL rather than the machine's own
        self.url = f"dns://{self._name.address}/triton.test:{self._port}"

    def add(self, repository: Path) -> TritonServer:
        """Starts a Triton; the name stands for it too once it is ready."""
        self._count += 1
        address = f"127.0.0.{1 + self._count}"
        server = TritonServer(repository, address=address, grpc_port=self._port)
        self._stack.enter_context(server)
        self._name.addresses.append(address)
        return server

    def forget(self, server: TritonServer) -> None:
        """The name stands for it no longer."""
        self._name.addresses.remove(server.grpc_url.partition(":")[0])


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with ExitStack() as stack:
        yield Fleet(stack)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return copy_mini(tmp_path / "model_repository")


serve = partial(gateway, deadline_s=RECONNECT_S, triton_reconnect_s=RECONNECT_S)


def inferences(server: TritonServer) -> int:
    """How many images a Triton has encoded."""
    with triton.InferenceServerClient(server.grpc_url) as client:
        return client.get_inference_statistics(parts_of(client, "mini")[0]).model_stats[-1].inference_count


@contextmanager
def counted(*servers: TritonServer) -> Iterator[list[int]]:
    """Inferences of each Triton within the block, there after it."""
    counts = [-inferences(server) for server in servers]
    yield counts
    counts[:] = [count + inferences(server) for count, server in zip(counts, servers, strict=True)]
    print("inferences", counts)


@pytest.mark.parametrize("replicas", [2, 3])
def test_requests_spread_evenly(fleet: Fleet, repository: Path, replicas: int) -> None:
    servers = [fleet.add(repository) for _ in range(replicas)]
    with serve(repository, fleet.url) as url, load(url) as noted, counted(*servers) as counts:
        noted.more_ok(40 * replicas)
    assert (noted.counts["lost"], noted.counts["retryable"]) == (0, 0)
    assert max(counts) <= 1.25 * min(counts)


def test_replica_that_dies_costs_nothing_and_one_that_is_added_gets_its_share(fleet: Fleet, repository: Path) -> None:
    dying, staying = fleet.add(repository), fleet.add(repository)
    with serve(repository, fleet.url) as url, load(url) as noted:
        process_of(dying).kill()
        fleet.forget(dying)
        dying.stop()
        noted.more_ok(20)
        added = fleet.add(repository)
        until(lambda: inferences(added) > 30)
        with counted(staying, added) as counts:
            noted.more_ok(60)
    assert (noted.counts["lost"], noted.counts["retryable"]) == (0, 0)
    assert max(counts) <= 1.25 * min(counts)


def test_rolling_update_loses_nothing(fleet: Fleet, repository: Path, tmp_path: Path) -> None:
    """As a Deployment rolls: one new replica more, then one of the old less, until all serve the new version."""
    before = shutil.copytree(repository, tmp_path / "before")  # what the old replicas go on serving
    old = [fleet.add(before) for _ in range(2)]
    with serve(repository, fleet.url) as url, load(url) as noted:
        new = release(repository)
        for leaving in old:
            arrived = fleet.add(repository)
            until(lambda arrived=arrived: inferences(arrived) > 10)
            fleet.forget(leaving)
            until(partial(is_left_alone, leaving, noted))  # as its preStop waits until no gateway asks it
            leaving.stop()
        until(lambda: noted.details[f"version {new}"] > 20)
    assert (noted.counts["lost"], noted.counts["retryable"]) == (0, 0)


def is_left_alone(server: TritonServer, noted: Load) -> bool:
    with counted(server) as counts:
        noted.more_ok(20)
    return counts == [0]


def release(repository: Path) -> str:
    """Publishes mini once more; returns the version."""
    version = load_bundle(repository, "mini")[0].version
    return republish(repository, "mini", version, repository)[0].version
