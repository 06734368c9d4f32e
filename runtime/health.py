"""Finds models that are stuck while the server runs, in a thread of its own: it waits for inferences."""

import logging
from collections.abc import Callable
from pathlib import Path
from queue import Queue
from threading import Event, Thread

from referent.triton.liveness import INTERVAL_S, Liveness, StuckError
from runtime.attempt import Served

logger = logging.getLogger(__name__)


class Health:
    """`stuck` is called with the name of each stuck model of `served`, and whether the whole server is stuck. `stop`
    ends the thread."""

    def __init__(
        self, repository: Path, grpc_url: str, metrics_url: str, served: Callable[[], dict[str, Served]]
    ) -> None:
        self.stuck: Queue[tuple[str, bool]] = Queue()
        self._places, self._served = (repository, grpc_url, metrics_url), served
        self._watched: dict[str, tuple[Served, Liveness]] = {}
        self._stopping = Event()
        Thread(target=self._run, name="health", daemon=True).start()

    def stop(self) -> None:
        """Returns at once; an inference that is waited for ends by itself."""
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.wait(INTERVAL_S):
            for name, served in self._served().items():
                watched = self._watched.get(name)
                if not watched or watched[0] is not served:
                    liveness = Liveness(*self._places, name, served.parts, served.golden_s)
                    watched = self._watched[name] = served, liveness
                try:
                    watched[1].check()
                except StuckError as error:
                    if not self._stopping.is_set():
                        logger.error("%s is stuck: %s", name, error)
                        self.stuck.put((name, error.whole))
                        del self._watched[name]  # the next one has as much time
                except Exception:
                    logger.exception("the health of %s could not be told; trying again", name)
