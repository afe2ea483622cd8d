# SPDX-License-Identifier: Apache-2.0
"""Frames, and what is in them; no input or output. The contract is client/PROTOCOL.md."""
from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgpack

FRAME_MAX = 16 << 20
Message = Mapping[str, str]
Question = str | Sequence[Message] | None


def find_socket() -> str:
    """Where clients connect when nothing is said: $MOE_SOCKET, the user's own service, the system's."""
    own = os.path.join(os.environ.get("XDG_RUNTIME_DIR", ""), "moed/rpc")
    return os.environ.get("MOE_SOCKET") or (own if os.path.isabs(own) and os.path.exists(own) else "/run/moed/rpc")


class Error(Exception):
    """The service refused a request."""

    def __init__(self, error: Mapping[str, Any]):
        super().__init__(f"{error['name']}: {error['message']}")
        self.code: int = error["code"]
        self.name: str = error["name"]
        self.message: str = error["message"]
        self.data: Mapping[str, Any] = error.get("data") or {}


class Busy(Error):
    """It has too much to do."""

    @property
    def retry_after(self) -> float:
        """Seconds after which it may be asked again."""
        return self.data.get("retry_after_ms", 1000) / 1000


@dataclasses.dataclass(frozen=True)
class Piece:
    """A part of an answer, as it is written."""

    text: str
    thought: bool = False  # what the model thinks, and not the answer
    logprobs: Sequence[Mapping[str, Any]] | None = None


@dataclasses.dataclass(frozen=True)
class Answer:
    """A whole answer."""

    text: str
    thought: str
    stop_reason: str  # "stop", "length" or "deadline"
    model: str
    seed: int
    usage: Mapping[str, int]  # tokens: prompt, cached, generated, dropped
    timings: Mapping[str, int]  # microseconds: queue_us, prefill_us, decode_us
    result: Mapping[str, Any]  # all that was said

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> Answer:
        return cls(result.get("text") or "", result.get("thought") or "", result["stop_reason"], result["model"],
                   result["seed"], result["usage"], result["timings"], result)


def generate_params(question: Question, params: dict[str, Any]) -> dict[str, Any]:
    """Of generate and session.generate."""
    if isinstance(question, str):
        question = [{"role": "user", "content": question}]
    if question is not None:
        params["messages"] = [dict(m) for m in question]
    return params


def piece_of(params: Mapping[str, Any]) -> Piece:
    return Piece(params["text"], params["kind"] == "thought", params.get("logprobs"))


class Connection:
    """The bytes of one connection: requests out, frames in."""

    def __init__(self) -> None:
        self._last_id = 0
        self._unpacker = msgpack.Unpacker(raw=False, strict_map_key=False, max_buffer_size=2 * FRAME_MAX)

    def request(self, method: str, params: Mapping[str, Any]) -> tuple[int, bytes]:
        """A new request's number and frame."""
        self._last_id = self._last_id % 0xFFFFFFFF + 1
        return self._last_id, msgpack.packb([0, self._last_id, method, [params]])

    @staticmethod
    def cancel(msgid: int) -> bytes:
        return msgpack.packb([2, "generate.cancel", [{"id": msgid}]])

    def receive(self, data: bytes) -> Iterator[tuple[int | None, str | None, Any]]:
        """What came whole with @data: (number, method, params) of a notification that belongs to a request,
        (None, method, params) of another, (number, None, result or Error) of a response."""
        self._unpacker.feed(data)
        for kind, *rest in self._unpacker:
            if kind == 1:
                msgid, error, result = rest
                if error is not None:
                    result = (Busy if error["name"] == "Busy" else Error)(error)
                yield msgid, None, result
            elif kind == 2 and rest[0] == "rpc.error":
                raise ConnectionError(rest[1][0]["message"])
            elif kind == 2:
                params = rest[1][0]
                yield params["id"] if rest[0].startswith("generate.") else None, rest[0], params
