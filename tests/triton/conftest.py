"""A gateway in front of a fake Triton."""

from tests.support.gateway import anyio_backend, client, make_app, repository, start, triton, triton_url, url

__all__ = ["anyio_backend", "client", "make_app", "repository", "start", "triton", "triton_url", "url"]
