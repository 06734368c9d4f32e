"""TritonClient against a Triton that answers as it is told; against the real one in tests/system/test_end_to_end.py."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from PIL import Image

from referent.core.bundle import BundleError
from referent.core.images import ImageError
from referent.core.prompts import ExpressionError
from referent.triton.client import TritonClient
from referent.triton.protocol import LostConnectionError, TritonError, VersionGoneError
from tests.support.fake_triton import FakeTriton, publish
from tests.support.gateway import listening
from tests.support.requests import jpeg


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    publish(tmp_path)
    return tmp_path


@pytest.fixture
def triton(repository: Path) -> FakeTriton:
    fake = FakeTriton()
    fake.serve(repository)
    return fake


@pytest.fixture
def url(triton: FakeTriton) -> Iterator[str]:
    with listening(triton) as url:
        yield url


@pytest.fixture
def client(url: str, repository: Path) -> Iterator[TritonClient]:
    with TritonClient(url, "tiny", repository) as client:
        yield client


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    return slept


@pytest.mark.parametrize("kind", ["file", "bytes", "picture", "array"])
def test_boxes_are_of_the_image_whatever_it_was_given_as(client: TritonClient, tmp_path: Path, kind: str) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(100, 200))
    picture = Image.new("RGB", (100, 200))
    sources = {"file": tmp_path / "a.jpg", "bytes": jpeg(100, 200), "picture": picture, "array": np.asarray(picture)}
    answer = client.ground(sources[kind], ["the queen", "the king"])
    assert [found.expression for found in answer.results] == ["the queen", "the king"]
    assert answer.results[0].box_xyxy == pytest.approx((25, 50, 75, 150))
    assert (answer.model, answer.version, answer.image.height) == ("tiny", "1", 200)
    assert answer.timings_ms.total > 0
    assert answer.plot().size == (100, 200)


def test_more_expressions_than_a_row_holds_are_all_answered(client: TritonClient) -> None:
    expressions = [f"number {i}" for i in range(11)]
    assert [found.expression for found in client.ground(jpeg(), expressions).results] == expressions


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (grpc.StatusCode.UNAVAILABLE, "Socket closed"),
        (grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size"),
        (grpc.StatusCode.INTERNAL, "Stub process is not healthy."),
    ],
    ids=["lost connection", "full queue", "dead stub"],
)
def test_what_passes_is_asked_again(
    client: TritonClient, triton: FakeTriton, waits: list[float], status: grpc.StatusCode, message: str
) -> None:
    triton.failures = [(status, message)] * 2
    assert client.ground(jpeg(), "the queen").results[0].score == pytest.approx(0.9)
    assert len(waits) == 2


def test_another_version_is_asked_when_the_one_before_is_gone(
    client: TritonClient, triton: FakeTriton, repository: Path, waits: list[float]
) -> None:
    publish(repository, "2", present_threshold=0.95)
    del triton.served["tiny"]
    triton.serve(repository, version="2")
    answer = client.ground(jpeg(), "the queen")
    assert (answer.version, answer.results[0].present) == ("2", False)
    assert len(waits) == 1


def test_what_does_not_pass_is_told(client: TritonClient, triton: FakeTriton, waits: list[float]) -> None:
    triton.failures = [(grpc.StatusCode.INVALID_ARGUMENT, "unexpected shape")]
    with pytest.raises(TritonError, match="unexpected shape"):
        client.ground(jpeg(), "the queen")
    triton.failures = [(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")]
    with pytest.raises(TimeoutError):
        client.ground(jpeg(), "the queen")
    assert not waits


def test_bad_input_is_told_before_anything_is_asked(client: TritonClient, triton: FakeTriton) -> None:
    with pytest.raises(ImageError):
        client.ground(b"no image", "the queen")
    for expressions in (" ", []):
        with pytest.raises(ExpressionError):
            client.ground(jpeg(), expressions)
    with pytest.raises(ValueError, match="give the image itself"):
        client.ground("https://images.example.org/a.jpg", "the queen")
    assert triton.requests == []


@pytest.mark.parametrize("wrong", [0, -1, 65, 100_000])
def test_a_limit_that_no_model_takes_is_told(client: TritonClient, wrong: int) -> None:
    with pytest.raises(ValueError, match=f"max_instances is {wrong}: give 1 to 64"):
        client.ground(Image.new("RGB", (30, 20)), "the cup", max_instances=wrong)


def test_no_triton_is_told_with_the_command_that_starts_one(repository: Path) -> None:
    with pytest.raises(LostConnectionError, match="start one with: referent serve"):
        TritonClient("127.0.0.1:9", "tiny", repository)


def test_another_repository_than_the_served_one_is_told(
    url: str, triton: FakeTriton, repository: Path, tmp_path: Path
) -> None:
    with pytest.raises(VersionGoneError, match="maxi"):
        TritonClient(url, "maxi", repository)
    with pytest.raises(BundleError, match="is missing"):
        TritonClient(url, "tiny", tmp_path / "elsewhere")
    triton.serve(repository, digest="sha256:0")
    with pytest.raises(TritonError, match="of digest sha256:0"):
        TritonClient(url, "tiny", repository)
