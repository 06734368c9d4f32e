"""Both clients of a service that answers as a test says."""

from tests.support.clients import ask, ask_url, waits

__all__ = ["ask", "ask_url", "waits"]
