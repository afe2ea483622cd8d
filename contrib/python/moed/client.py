# SPDX-License-Identifier: Apache-2.0
"""A client that waits."""
from __future__ import annotations

import socket
from collections.abc import Generator
from typing import Any

from .protocol import Answer, Connection, Error, Piece, Question, find_socket, generate_params, piece_of


class Client:
    """One connection, for one thread, with one request at a time. @timeout: seconds without a sign of
    life of the service, after which TimeoutError is raised and the connection is of no more use."""

    def __init__(self, path: str | None = None, timeout: float | None = None):
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout)
        try:
            self._socket.connect(path or find_socket())
        except BaseException:
            self._socket.close()
            raise
        self._connection = Connection()
        self._pending: list[tuple[int | None, str | None, Any]] = []

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *what: object) -> None:
        self.close()

    def _events(self, msgid: int) -> Generator[tuple[str, Any], None, Any]:
        """The notifications of @msgid, as (method, params); returns the result."""
        while True:
            while self._pending:
                got, method, what = self._pending.pop(0)
                if got != msgid:
                    continue  # of a request that was left, or of none
                if method is not None:
                    yield method, what
                elif isinstance(what, Error):
                    raise what
                else:
                    return what
            data = self._socket.recv(1 << 16)
            if not data:
                raise ConnectionError("the service closed the connection")
            self._pending.extend(self._connection.receive(data))

    def _send(self, method: str, params: dict[str, Any]) -> int:
        msgid, frame = self._connection.request(method, params)
        self._socket.sendall(frame)
        return msgid

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of any method of the protocol."""
        events = self._events(self._send(method, params))
        while True:
            try:
                next(events)
            except StopIteration as end:
                return end.value

    def _stream(self, method: str, params: dict[str, Any]) -> Generator[Piece, None, Answer]:
        msgid = self._send(method, {**params, "stream": True})
        done = False
        try:
            events = self._events(msgid)
            while True:
                try:
                    kind, what = next(events)
                except StopIteration as end:
                    done = True
                    return Answer.of(end.value)
                except Error:
                    done = True
                    raise
                if kind == "generate.delta":
                    yield piece_of(what)
        finally:
            if not done and self._socket.fileno() >= 0:
                self._socket.sendall(self._connection.cancel(msgid))

    def ask(self, question: Question = None, **params: Any) -> Answer:
        """A whole answer. @params: of generate, as prompt="..." instead of @question."""
        return Answer.of(self.call("generate", **generate_params(question, params)))

    def stream(self, question: Question = None, **params: Any) -> Generator[Piece, None, Answer]:
        """An answer in pieces; the generator returns the Answer, without its text."""
        return self._stream("generate", generate_params(question, params))

    def session(self, **params: Any) -> Session:
        """A conversation that the service remembers. @params: of session.open."""
        return Session(self, self.call("session.open", **params)["session"])


class Session:
    """A conversation; closed at the end of its block, and with its connection."""

    def __init__(self, client: Client, number: int):
        self.client, self.number = client, number

    def close(self) -> None:
        self.client.call("session.close", session=self.number)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, *what: object) -> None:
        if not kind or not issubclass(kind, OSError):
            self.close()

    def ask(self, question: Question = None, **params: Any) -> Answer:
        return Answer.of(self.client.call("session.generate", **generate_params(question, {**params, "session": self.number})))

    def stream(self, question: Question = None, **params: Any) -> Generator[Piece, None, Answer]:
        return self.client._stream("session.generate", generate_params(question, {**params, "session": self.number}))
