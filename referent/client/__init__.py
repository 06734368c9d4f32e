"""The SDK: clients of a running service, their results, and batches."""

from referent.client.failures import ServiceError, ServiceUnreachableError
from referent.client.http import AsyncClient, Client
from referent.client.results import Grounding

__all__ = ["AsyncClient", "Client", "Grounding", "ServiceError", "ServiceUnreachableError"]
