"""A TCP proxy between one worker and its broker: cuts, delays, silence, and answers that never arrive.

Kafka tells its clients where to connect next, so the broker's address in its answers has to become the proxy's. It
stands there as text and four bytes of port, and the proxy listens on the same host: only the port is exchanged, no
length changes, and the broker needs no second listener. Frames of Kafka's protocol are passed on whole:

    length, 4 bytes | request: kind 2, version 2, correlation id 4, ... | answer: correlation id 4, ...
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

PRODUCE: Final = 0
ADD_PARTITIONS: Final = 24
END_TRANSACTION: Final = 26
COMMIT_OFFSETS: Final = 28

_STARTED_S = 10.0


class Proxy:
    """One address that leads to the broker; faults hit every connection through it at once.

    Everything may be called from any thread; what it asks for happens in the proxy's own.

    Args:
        broker: host:port as clients are told it, on this machine.
        passed: called in the proxy's thread with the kind of each request that was handed to the broker.
    """

    def __init__(self, broker: str, passed: Callable[[int], None] = lambda kind: None):
        self._host, _, port = broker.rpartition(":")
        self._port = int(port)
        self._passed = passed
        self._loop = asyncio.new_event_loop()
        self._flowing = asyncio.Event()
        self._delay_s = 0.0
        self._refusing = False
        self._swallowed: int | None = None
        self._links: set[_Link] = set()
        self._own_port = 0
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._listening = threading.Event()
        self._server: asyncio.Server | None = None

    @property
    def address(self) -> str:
        """host:port for the clients."""
        return f"{self._host}:{self._own_port}"

    def start(self) -> Self:
        """Listen on a free port.

        Raises:
            TimeoutError: it does not listen after ten seconds.
        """
        self._thread.start()
        if not self._listening.wait(_STARTED_S):
            raise TimeoutError(f"The proxy before {self._host}:{self._port} does not listen.")
        return self

    def stop(self) -> None:
        """Cut everything and end the thread."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_STARTED_S)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # ------------------------------------------------------------------ faults

    def cut(self, seconds: float) -> None:
        """Reset every connection, in the middle of what they carry, and refuse new ones for a while."""

        def begin() -> None:
            self._refusing = True
            self._abort()
            self._loop.call_later(seconds, end)

        def end() -> None:
            self._refusing = False

        self._loop.call_soon_threadsafe(begin)

    def slow(self, delay_s: float, seconds: float) -> None:
        """Every frame waits so long in each direction, for a while."""

        def begin() -> None:
            self._delay_s = delay_s
            self._loop.call_later(seconds, end)

        def end() -> None:
            self._delay_s = 0.0

        self._loop.call_soon_threadsafe(begin)

    def hush(self, seconds: float) -> None:
        """Nothing passes for a while and no connection ends; then all of it arrives, late."""

        def begin() -> None:
            self._flowing.clear()
            self._loop.call_later(seconds, self._flowing.set)

        self._loop.call_soon_threadsafe(begin)

    def swallow(self, kind: int) -> None:
        """The broker gets the next request of this kind; its answer never arrives, the connection is reset."""

        def begin() -> None:
            self._swallowed = kind

        self._loop.call_soon_threadsafe(begin)

    # ------------------------------------------------------------------ in the proxy's thread

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._flowing.set()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, self._host, 0))
        self._own_port = self._server.sockets[0].getsockname()[1]
        self._listening.set()
        self._loop.run_forever()
        self._server.close()
        self._abort()
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        self._loop.close()

    def _abort(self) -> None:
        for link in list(self._links):
            link.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            writer.transport.abort()
            return
        try:
            beyond = await asyncio.open_connection(self._host, self._port)
        except OSError:  # the broker is down
            writer.transport.abort()
            return
        link = _Link(self, reader, writer, *beyond)
        self._links.add(link)
        try:
            await link.run()
        finally:
            self._links.discard(link)
            link.abort()

    async def hold(self) -> None:
        """What a frame waits for before it is passed on."""
        if self._delay_s:
            await asyncio.sleep(self._delay_s)
        await self._flowing.wait()

    def swallows(self, kind: int) -> bool:
        """Whether the answer to this request is the one to swallow; asked once a request."""
        if kind != self._swallowed:
            return False
        self._swallowed = None
        return True

    def passed(self, kind: int) -> None:
        self._passed(kind)

    def readdressed(self, answer: bytes) -> bytes:
        """The answer with our port where the broker's address stands."""
        host = self._host.encode()
        return answer.replace(host + self._port.to_bytes(4, "big"), host + self._own_port.to_bytes(4, "big"))


class _Link:
    """One connection of a client and the one to the broker that belongs to it."""

    def __init__(
        self,
        proxy: Proxy,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        beyond_reader: asyncio.StreamReader,
        beyond_writer: asyncio.StreamWriter,
    ):
        self._proxy = proxy
        self._client, self._client_writer = reader, writer
        self._broker, self._broker_writer = beyond_reader, beyond_writer
        self._swallowed: bytes | None = None  # the correlation id of the answer that is not passed on

    async def run(self) -> None:
        """Pass frames on until one side ends."""
        tasks = {asyncio.ensure_future(self._requests()), asyncio.ensure_future(self._answers())}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def abort(self) -> None:
        for writer in (self._client_writer, self._broker_writer):
            writer.transport.abort()

    async def _requests(self) -> None:
        with _ended():
            while True:
                frame = await _frame(self._client)
                kind = int.from_bytes(frame[:2], "big")
                if self._proxy.swallows(kind):
                    self._swallowed = frame[4:8]
                await self._pass(self._broker_writer, frame)
                self._proxy.passed(kind)

    async def _answers(self) -> None:
        with _ended():
            while True:
                frame = await _frame(self._broker)
                if frame[:4] == self._swallowed:
                    return
                await self._pass(self._client_writer, self._proxy.readdressed(frame))

    async def _pass(self, writer: asyncio.StreamWriter, frame: bytes) -> None:
        await self._proxy.hold()
        writer.write(len(frame).to_bytes(4, "big") + frame)
        await writer.drain()


async def _frame(reader: asyncio.StreamReader) -> bytes:
    return await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big"))


def _ended() -> Any:
    """Either side may end a connection at any byte."""
    return contextlib.suppress(asyncio.IncompleteReadError, OSError)
