"""Visual grounding: where in an image is what these words refer to?

from referent import Client
Client().ground("photo.jpg", ["the queen", "the king on the left"]).results[0].box_xyxy
"""

import logging
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

logging.getLogger(__name__).addHandler(logging.NullHandler())  # silent unless the program configures logging
__version__ = version("referent-grounding")  # `referent` on PyPI is another project
__all__ = ["AsyncClient", "Client", "Grounding", "ServiceError", "ServiceUnreachableError", "TritonClient"]

if TYPE_CHECKING:
    from referent.client import AsyncClient, Client, Grounding, ServiceError, ServiceUnreachableError
    from referent.triton.client import TritonClient
else:

    def __getattr__(name: str) -> Any:
        """Loads a public name when it is used, so that a part of the library loads no more than it needs."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home = "referent.triton.client" if name == "TritonClient" else "referent.client"
        return getattr(import_module(home), name)
