# SPDX-License-Identifier: Apache-2.0
"""A client for asyncio."""
from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from .protocol import Answer, Connection, Error, Piece, Question, find_socket, generate_params, piece_of


class AsyncClient:
    """One connection, for any number of tasks of one loop, with up to 64 requests at once."""

    def __init__(self, path: str | None = None):
        self._path = path or find_socket()
        self._connection = Connection()
        self._queues: dict[int, asyncio.Queue[tuple[str | None, Any]]] = {}
        self._reader: asyncio.Task[None] | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def __aenter__(self) -> AsyncClient:
        reader, self._writer = await asyncio.open_unix_connection(self._path)
        self._reader = asyncio.create_task(self._read(reader))
        return self

    async def __aexit__(self, *what: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Hang up, which cancels what runs."""
        if self._writer and self._reader:
            self._writer.close()
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        why: Exception = ConnectionError("the connection is closed")
        try:
            while data := await reader.read(1 << 16):
                for msgid, method, what in self._connection.receive(data):
                    if msgid in self._queues:
                        self._queues[msgid].put_nowait((method, what))
            why = ConnectionError("the service closed the connection")
        except Exception as e:  # whoever waits gets it
            why = e
        finally:
            for queue in self._queues.values():
                queue.put_nowait((None, why))

    async def _events(self, method: str, params: dict[str, Any]) -> AsyncGenerator[tuple[str | None, Any], None]:
        """(method, params) of each notification, and (None, result) at the end. Left early, it is cancelled."""
        if not self._writer or not self._reader or self._reader.done():
            raise ConnectionError("the connection is closed")
        msgid, frame = self._connection.request(method, params)
        queue = self._queues[msgid] = asyncio.Queue()
        done = False
        try:
            self._writer.write(frame)
            await self._writer.drain()
            while not done:
                kind, what = await queue.get()
                done = kind is None
                if isinstance(what, Exception):
                    raise what
                yield kind, what
        finally:
            del self._queues[msgid]
            if not done and not self._writer.is_closing():
                self._writer.write(self._connection.cancel(msgid))

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of any method of the protocol."""
        events = self._events(method, params)
        try:
            async for kind, what in events:
                if kind is None:
                    return what
        finally:
            await events.aclose()
        raise AssertionError("an answer without an end")

    async def _stream(self, method: str, params: dict[str, Any]) -> AsyncGenerator[Piece, None]:
        events = self._events(method, {**params, "stream": True})
        try:
            async for kind, what in events:
                if kind == "generate.delta":
                    yield piece_of(what)
        finally:
            await events.aclose()

    async def ask(self, question: Question = None, **params: Any) -> Answer:
        """A whole answer. @params: of generate, as prompt="..." instead of @question."""
        return Answer.of(await self.call("generate", **generate_params(question, params)))

    def stream(self, question: Question = None, **params: Any) -> AsyncGenerator[Piece, None]:
        """An answer in pieces."""
        return self._stream("generate", generate_params(question, params))

    async def session(self, **params: Any) -> AsyncSession:
        """A conversation that the service remembers. @params: of session.open."""
        return AsyncSession(self, (await self.call("session.open", **params))["session"])


class AsyncSession:
    """A conversation; closed at the end of its block, and with its connection."""

    def __init__(self, client: AsyncClient, number: int):
        self.client, self.number = client, number

    async def close(self) -> None:
        await self.client.call("session.close", session=self.number)

    async def __aenter__(self) -> AsyncSession:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *what: object) -> None:
        if not kind or not issubclass(kind, (OSError, asyncio.CancelledError)):
            await self.close()

    async def ask(self, question: Question = None, **params: Any) -> Answer:
        params = generate_params(question, {**params, "session": self.number})
        return Answer.of(await self.client.call("session.generate", **params))

    def stream(self, question: Question = None, **params: Any) -> AsyncGenerator[Piece, None]:
        return self.client._stream("session.generate", generate_params(question, {**params, "session": self.number}))
