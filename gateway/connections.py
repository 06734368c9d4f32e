"""HTTP connections with time limits: each ends in time, whatever its client does or fails to do."""

import asyncio
from typing import Any

import h11
import structlog
import uvicorn
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from gateway.body import MalformedRequestError
from gateway.errors import TABLE
from referent.core.api import PROBLEM_JSON

UNREAD_S = 15.0  # for a client to read PIECE bytes of its answer
PIECE = 1 << 18
LINGER_S = 25.0  # for a client to stop sending a body that was answered before its end
QUIET_S = 5.0  # for each pause in such a body
NEWCOMER_S = 1.0  # for the first request of a connection that was opened just before the service ends
CLOSE = (b"connection", b"close")
NO_HTTP = TABLE[MalformedRequestError].problem("what was sent is not HTTP/1.1", "")

log = structlog.get_logger("gateway")


class Connection(H11Protocol):
    """uvicorn's connection, with the limits that it lacks:

    - A request's head must arrive in time: uvicorn stops its clock at the first byte.
    - An answer is sent in pieces, each of which must be read in time; its request is in flight until then.
    - If a request is answered before the end of its body, the connection is closed once the client stops sending.
      Closing at once would reset the connection, and the client would lose the answer.
    - If there are more than `max_connections`, idle connections are closed for new ones.
    """

    max_connections: float = float("inf")

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._inner, self.app = self.app, self._paced
        self._lingering: asyncio.TimerHandle | None = None
        self._last: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._socket: Any = transport
        super().connection_made(_Closing(self))  # type: ignore[arg-type]
        self._wait(self.timeout_keep_alive)
        if len(self.connections) > self.max_connections:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self.timeout_keep_alive_task, self._lingering, self._last):
            if timer:
                timer.cancel()

    def data_received(self, data: bytes) -> None:
        if self._lingering:  # the data is discarded
            self._lingering.cancel()
            self._lingering = self.loop.call_later(QUIET_S, self._socket.abort)
        else:
            super().data_received(data)

    def shutdown(self) -> None:
        """The service ends: an idle connection is closed, a request in flight is answered, and a connection without a
        request yet may send one."""
        if self._lingering:
            self._socket.abort()
        elif self.cycle is None:
            self._unset_keepalive_if_required(even_in_head=True)
            self._wait(NEWCOMER_S)
        else:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """The data is not HTTP: sends a problem, unless an answer has begun. A request that waits for more of its body
        is told that its client disconnected."""
        if self.cycle and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = NO_HTTP.model_dump_json().encode()
            headers = [("content-type", PROBLEM_JSON), ("content-length", str(len(body))), ("connection", "close")]
            for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                self._socket.write(self.conn.send(event))
        self.close()

    @property
    def idle(self) -> bool:
        return self._lingering is not None or self.cycle is None or self.cycle.response_complete

    def close(self) -> None:
        """Closes the connection once its client has received everything, at the latest after `LINGER_S`."""
        if self._socket.is_closing() or self._lingering:
            return
        self._last = self.loop.call_later(LINGER_S, self._socket.abort)
        if self.conn.their_state not in (h11.SEND_BODY, h11.ERROR):
            self._socket.close()
            return
        self._lingering = self.loop.call_later(QUIET_S, self._socket.abort)
        self._socket.write_eof()
        self._socket.resume_reading()

    def _unset_keepalive_if_required(self, even_in_head: bool = False) -> None:
        if even_in_head or self.conn.their_state is not h11.IDLE:
            super()._unset_keepalive_if_required()

    def _wait(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def _make_room(self) -> None:
        idle = next((each for each in self.connections if each is not self and getattr(each, "idle", False)), None)
        (idle or self)._socket.abort()  # type: ignore[union-attr]
        if not idle:
            log.warning("connections are at their limit, and all are busy", limit=self.max_connections)

    async def _paced(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def paced(message: Message) -> None:
            if message["type"] == "http.response.start":
                if self.conn.their_state is h11.SEND_BODY:  # the rest of the body hides where a next request begins
                    headers = [header for header in message.get("headers", []) if header[0].lower() != CLOSE[0]]
                    message = {**message, "headers": [*headers, CLOSE]}
                await send(message)
                return
            body, more = message.get("body", b""), message.get("more_body", False)
            for start in range(0, max(len(body), 1), PIECE):
                piece, end = body[start : start + PIECE], start + PIECE
                await send({**message, "body": piece, "more_body": more or end < len(body)})
                await self._taken()

        await self._inner(scope, receive, paced)

    async def _taken(self) -> None:
        try:
            async with asyncio.timeout(UNREAD_S):
                await self.flow.drain()
        except TimeoutError:
            log.warning("an answer was not read", client=self.client)
            self._socket.abort()


class _Closing:
    """The connection's transport; only closing is different."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection._socket, name)

    def close(self) -> None:
        self._connection.close()

    def is_closing(self) -> bool:
        return self._connection._lingering is not None or self._connection._socket.is_closing()
