"""Where the clients find the service: URL, key and proxy."""

from typing import Any

import httpx
import pytest

from referent.client.failures import ServiceError, ServiceUnreachableError
from referent.core.api import EXAMPLE
from tests.support.clients import Ask, good, problem
from tests.support.raw import ANSWER, raw_server, response


def test_key_and_url_are_given_or_of_the_environment(monkeypatch: pytest.MonkeyPatch, ask: Ask) -> None:
    seen: list[tuple[str, str]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append((request.url.host, request.headers.get("authorization", "")))
        return httpx.Response(200, json=EXAMPLE)

    ask(answer, "ground", b"", "a", options={"url": "http://one", "api_key": "k1"})
    monkeypatch.setenv("REFERENT_URL", "http://two")
    monkeypatch.setenv("REFERENT_API_KEY", "k2")
    ask(answer, "ground", b"", "a")
    assert seen == [("one", "Bearer k1"), ("two", "Bearer k2")]


@pytest.mark.parametrize("key", [" k1", "k1\n", "\tk1\r\n"])
def test_space_around_a_key_is_none_of_it(ask: Ask, key: str) -> None:
    seen = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["authorization"])
        return good(request)

    ask(answer, "ground", b"", "a", options={"api_key": key})
    assert seen == ["Bearer k1"]


@pytest.mark.parametrize("key", ["secr\u00e9t", "secret\nsecret", "secret\0", "secret\x7f", "\u200bsecret"])
def test_a_key_that_no_header_holds_is_refused_and_not_shown(ask: Ask, key: str) -> None:
    with pytest.raises(ValueError, match="REFERENT_API_KEY") as caught:
        ask(good, "ground", b"", "a", options={"api_key": key})
    assert "secr" not in str(caught.value)


def test_a_blank_key_is_none(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFERENT_API_KEY", " \n")
    ask(lambda request: good(request) if "authorization" not in request.headers else problem(401), "ground", b"", "a")


@pytest.mark.parametrize("form", ["localhost:{}", "127.0.0.1:{}/", " http://127.0.0.1:{} ", "//localhost:{}"])
def test_the_url_may_be_written_in_several_ways(ask_url: Ask, form: str) -> None:
    with raw_server(lambda connection, _: connection.sendall(response(ANSWER))) as url:
        assert ask_url(form.format(url.rpartition(":")[2]), "ground", b"image", "a").model == "mini"


def test_a_path_of_the_url_stands_before_those_of_the_api(ask: Ask) -> None:
    paths = []

    def answer(request: httpx.Request) -> httpx.Response:
        paths.append(request.url.path)
        return good(request)

    ask(answer, "ground", b"", "a", options={"url": "http://host/below/"})
    assert paths == ["/below/v1/ground"]


@pytest.mark.parametrize(
    "url", ["ftp://u:secret@host", "http://", "http://u:secret@host:99999", "http://u:secret@host:port", "u:secret@:8"]
)
def test_what_is_no_url_is_told_without_its_password(ask: Ask, url: str) -> None:
    with pytest.raises(ServiceUnreachableError, match="is not the URL of a service") as caught:
        ask(good, "ground", b"", "a", options={"url": url})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf"), None, "3"])
def test_a_time_limit_is_a_number_of_seconds(ask: Ask, timeout_s: Any) -> None:
    with pytest.raises(ValueError, match="timeout_s is"):
        ask(good, "ground", b"", "a", options={"timeout_s": timeout_s})


NOWHERE = "http://127.0.0.1:9"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("HTTP_PROXY", NOWHERE),
        ("http_proxy", NOWHERE),
        ("ALL_PROXY", "socks://127.0.0.1:9"),
        ("ALL_PROXY", "socks5://127.0.0.1:9"),
        ("NO_PROXY", "localhost,[::1]"),
        ("NO_PROXY", "fe80::/10"),
    ],
)
def test_a_service_of_this_machine_is_asked_directly(
    ask_url: Ask, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with raw_server(lambda connection, _: connection.sendall(response(ANSWER))) as url:
        for own in (url, url.replace("127.0.0.1", "localhost"), url.replace("127.0.0.1", "0.0.0.0")):
            assert ask_url(own, "ground", b"image", "a").model == "mini"


@pytest.mark.parametrize(
    ("variable", "value", "scheme"),
    [
        ("HTTP_PROXY", NOWHERE, "http"),
        ("http_proxy", "127.0.0.1:9", "http"),
        ("https_proxy", NOWHERE, "https"),
        ("ALL_PROXY", NOWHERE, "https"),
        ("ALL_PROXY", "socks://u:secret@127.0.0.1:9", "http"),
        ("all_proxy", "ftp://127.0.0.1:9", "http"),
    ],
)
def test_a_proxy_that_does_not_work_is_told_with_its_variable(
    ask_url: Ask, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, scheme: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ServiceUnreachableError, match=f"the proxy of {variable}.*service.test in NO_PROXY") as caught:
        ask_url(f"{scheme}://service.test", "ground", b"image", "a")
    assert "secret" not in str(caught.value)


def test_other_services_are_asked_through_the_proxy(ask_url: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [response(b"", "502 Bad Gateway"), response(ANSWER)]
    with raw_server(lambda connection, _: connection.sendall(answers.pop())) as proxy:
        monkeypatch.setenv("http_proxy", proxy)
        assert ask_url("service.test", "ground", b"image", "a").model == "mini"
        with pytest.raises(ServiceError, match="through the proxy of http_proxy"):
            ask_url("service.test", "ground", b"image", "a")
