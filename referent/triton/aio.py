"""Asks Triton in asyncio: what it serves, whether that is our bundle, and inference."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from tritonclient.grpc.aio import InferenceServerClient

from referent.core.bundle import Bundle
from referent.core.kind import Arrays, Options, Prepared
from referent.triton.protocol import (
    InternalError,
    LostConnectionError,
    PassingInternalError,
    TritonError,
    VersionGoneError,
    check_config,
    inference_request,
    newest,
    own_errors,
    read_outputs,
)

LOOKUP_TIMEOUT_S = 5  # for what Triton answers from memory
CHANNEL = [
    ("grpc.lb_policy_name", "round_robin"),
    ("grpc.use_local_subchannel_pool", 1),  # a new channel shall mean new connections
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]
TRIES: dict[type[Exception], int] = {LostConnectionError: 3, VersionGoneError: 5}
# another Triton may be sound; while they move on to another version, each has one of the two: of three in turn, beside
# other callers, every tenth request met the one without its version five times
TRIES_OF_SEVERAL: dict[type[Exception], int] = {
    LostConnectionError: 6,
    VersionGoneError: 12,
    InternalError: 2,
    PassingInternalError: 2,
}
# a call hears of a lost connection just before the channel does, and would be given the same one again
PAUSE_S = 0.02


class _Connection:
    """A client, and how many questions it is being asked. Once it is replaced, the last of them closes it."""

    def __init__(self, target: str) -> None:
        self.client = InferenceServerClient(target, channel_args=CHANNEL)
        self._questions, self._replaced = 0, False

    async def ask(self, question: Callable[[InferenceServerClient], Awaitable[Any]]) -> Any:
        self._questions += 1
        try:
            return await question(self.client)
        finally:
            self._questions -= 1
            await self._close_if_over()

    async def replace(self) -> None:
        self._replaced = True
        await self._close_if_over()

    async def _close_if_over(self) -> None:
        if self._replaced and not self._questions:
            await self.client.close()


class Triton:
    """Client of one Triton, or of several in turn if the URL is IP:PORT,IP:PORT or dns:///NAME:PORT. Create it in the
    event loop that uses it."""

    def __init__(self, url: str, headers: Callable[[], Mapping[str, str]] = dict) -> None:
        """`headers` go with each inference, such as the context of a trace."""
        self._headers = headers
        self._target = f"ipv4:{url}" if "," in url else url
        several = "," in url or url.startswith("dns:")
        self._tries = {**TRIES, **(TRIES_OF_SEVERAL if several else {})}
        self._connection = _Connection(self._target)

    async def close(self) -> None:
        await self._connection.replace()

    async def keep_reconnecting(self, interval_s: float) -> None:
        """Opens new connections at each interval, since names are looked up only then: so Tritons that were added get
        requests too. Requests in flight keep the old connections.
        """
        while True:
            await asyncio.sleep(interval_s)
            before, self._connection = self._connection, _Connection(self._target)
            await before.replace()

    async def latest_version(self, name: str) -> str:
        """The highest version of a model that Triton has ready. Raises `TritonError`."""
        return newest(await self._ask(lambda client: client.get_model_metadata(name, client_timeout=LOOKUP_TIMEOUT_S)))

    async def check(self, bundle: Bundle, digest: str) -> None:
        """Raises `TritonError` unless Triton serves exactly this bundle with the tensors of the contract."""
        named = bundle.name, bundle.version
        found = await self._ask(lambda client: client.get_model_config(*named, client_timeout=LOOKUP_TIMEOUT_S))
        check_config(bundle, digest, found.config)

    async def infer(self, bundle: Bundle, prepared: Prepared, timeout_s: float, request_id: str = "") -> list[Arrays]:
        """Asks this version for each of the inferences at once; cancelling the caller cancels the requests.

        Raises `TritonError`, and `TimeoutError` if Triton takes longer than `timeout_s`.
        """
        asking = [
            asyncio.ensure_future(self._infer(bundle, arrays, prepared.options, timeout_s, request_id))
            for arrays in prepared.inferences
        ]
        try:
            return await asyncio.gather(*asking)
        finally:  # if one failed, the answers to the others are not needed
            for task in asking:
                task.cancel()

    async def _infer(
        self, bundle: Bundle, arrays: Arrays, options: Options, timeout_s: float, request_id: str
    ) -> Arrays:
        request = inference_request(bundle, arrays, timeout_s, options)
        request |= {"request_id": request_id, "headers": self._headers()}
        now = asyncio.get_running_loop().time
        deadline = now() + timeout_s
        result = await self._ask(lambda client: client.infer(**request, client_timeout=deadline - now()))
        return read_outputs(bundle, arrays, result, options)

    async def _ask(self, question: Callable[[InferenceServerClient], Awaitable[Any]]) -> Any:
        """The answer; if one Triton can't give it, the next is asked, since questions have no side effects."""
        tries = dict(self._tries)
        while True:
            try:
                with own_errors():
                    return await self._connection.ask(question)
            except TritonError as error:
                tries[type(error)] = tries.get(type(error), 1) - 1
                if not tries[type(error)]:
                    raise
                await asyncio.sleep(PAUSE_S)
