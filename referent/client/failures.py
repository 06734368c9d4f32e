"""What a client raises where a service refused, or did not answer."""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx

from referent.core.api import PROBLEM_JSON

PASSING = (429, 503)  # retryable, if the answer itself doesn't say whether it is
SHOWN_CHARACTERS = 200  # of an answer that is not problem+json

T = TypeVar("T")


class ServiceUnreachableError(ConnectionError):
    """Nothing answers at the URL in time, or what answers is not the service."""

    def __init__(self, message: str, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.retry_after_s: float | None = None


class ServiceError(RuntimeError):
    """The service answered with a problem. The attributes are those of its problem+json; without one, defaults."""

    def __init__(self, response: httpx.Response, proxy: str | None = None) -> None:
        problem = _problem_of(response)

        def said(name: str, kind: type[T], otherwise: T) -> T:
            return value if isinstance(value := problem.get(name), kind) else otherwise

        self.status = response.status_code
        self.type = said("type", str, "about:blank")
        self.title = said("title", str, response.reason_phrase)
        self.detail = said("detail", str, response.content[:SHOWN_CHARACTERS].decode(errors="replace"))
        self.request_id = said("request_id", str, "") or None
        self.retryable = said("retryable", bool, self.status in PASSING)
        self.stage = said("stage", str, "") or None
        self.retry_after_s = _seconds_of(response.headers.get("retry-after", ""))
        by = f", through the proxy of {proxy}" if proxy and not problem else ""
        super().__init__(f"{self.title}: {self.detail} (status {self.status}, request {self.request_id}{by})")


def _problem_of(response: httpx.Response) -> dict[str, Any]:
    if not response.headers.get("content-type", "").startswith(PROBLEM_JSON):
        return {}
    try:
        problem = response.json()
    except (ValueError, RecursionError):  # cut off, not text, or nested too deeply
        return {}
    return problem if isinstance(problem, dict) else {}


def _seconds_of(retry_after: str) -> float | None:
    """The header's seconds, or those until its date; None if it is neither."""
    if retry_after.isdecimal():
        return float(retry_after)
    try:
        date = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
