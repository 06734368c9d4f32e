"""The page as browsers get it: headers, caching, and no way out of its folder."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from gateway.keys import new_key
from gateway.web import SECURITY
from tests.support.gateway import Start

pytestmark = pytest.mark.anyio


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """A folder as the build leaves it, beside a file that must not be served."""
    folder = tmp_path / "dist"
    (folder / "assets").mkdir(parents=True)
    (folder / "index.html").write_text("<!doctype html><title>Referent</title>")
    (folder / "assets" / "index-1a2b.js").write_text("export {}")
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "assets" / "link.txt").symlink_to(tmp_path / "secret.txt")
    return folder


@pytest.fixture
async def page(start: Start, built: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with start(web=built) as client:
        yield client


async def test_the_page_is_served_and_always_asked_for_anew(page: httpx.AsyncClient) -> None:
    response = await page.get("/")
    assert response.text.startswith("<!doctype html>")
    assert response.headers["content-type"].startswith("text/html")
    assert response.headers["cache-control"] == "no-cache"
    assert (await page.head("/")).status_code == 200


async def test_assets_are_kept_for_ever(page: httpx.AsyncClient) -> None:
    response = await page.get("/assets/index-1a2b.js")
    assert response.headers["content-type"].startswith("text/javascript")
    assert "immutable" in response.headers["cache-control"]
    again = await page.get("/assets/index-1a2b.js", headers={"If-None-Match": response.headers["etag"]})
    assert again.status_code == 304


@pytest.mark.parametrize("path", ["/", "/assets/index-1a2b.js"])
async def test_nothing_inline_or_foreign_runs_in_it(page: httpx.AsyncClient, path: str) -> None:
    headers = (await page.get(path)).headers
    assert headers.items() >= {name.lower(): value for name, value in SECURITY.items()}.items()
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'self'; ")
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy


@pytest.mark.parametrize(
    "path",
    [
        "/assets/../../secret.txt",
        "/assets/%2e%2e/%2e%2e/secret.txt",
        "/assets/..%2f..%2fsecret.txt",
        "/assets/link.txt",
        "/assets//etc/passwd",
        "/assets/%00",
        "/assets/",
        "/assets/nothing.js",
        "/index.html",
    ],
)
async def test_there_is_no_way_out_of_the_folder(page: httpx.AsyncClient, path: str) -> None:
    response = await page.get(httpx.URL("http://gateway", raw_path=path.encode()))
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"
    assert "cache-control" not in response.headers


async def test_without_the_page_the_api_works_and_says_how_to_get_it(start: Start, tmp_path: Path) -> None:
    async with start(web=tmp_path / "nowhere") as client:
        answer = (await client.get("/")).json()
        assert "not built: make web/dist/index.html does it" in answer["page"]
        assert (await client.get(answer["api"])).status_code == 200
        assert (await client.get("/assets/index-1a2b.js")).status_code == 404


async def test_a_page_that_is_built_later_is_served_then(start: Start, tmp_path: Path) -> None:
    async with start(web=tmp_path) as client:
        assert "page" in (await client.get("/")).json()
        (tmp_path / "index.html").write_text("<!doctype html>")
        assert (await client.get("/")).text == "<!doctype html>"


async def test_the_api_description_loads_nothing_from_elsewhere_and_works_behind_a_prefix(
    page: httpx.AsyncClient,
) -> None:
    response = await page.get("/docs")
    assert "default-src 'self'; " in response.headers["content-security-policy"]
    loaded = re.findall(r"""(?:src|href)="([^"]+)"|url: ['"]([^'"]+)""", response.text)
    assert len(loaded) == 4
    for address in (first or second for first, second in loaded):
        assert not address.startswith(("/", "http"))
        assert (await page.get(f"/{address}")).status_code == 200


async def test_the_page_needs_no_key_and_the_api_does(start: Start, built: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(new_key("me", ["infer"])[1])
    async with start(web=built, keys_file=tmp_path / "keys") as client:
        paths = (b"/", b"/assets/index-1a2b.js", b"/v1/models", b"/assets", b"/assetsx", b"/assets/%2e%2e/v1/models")
        urls = [httpx.URL("http://gateway", raw_path=path) for path in paths]
        statuses = [(await client.get(url)).status_code for url in urls]
    assert statuses == [200, 200, 401, 401, 401, 404]
