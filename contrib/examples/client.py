#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Ask moed something, from Python: client.py [--socket PATH] [--max-tokens N] PROMPT

Needs nothing but python3-msgpack. The protocol is described in client/PROTOCOL.md.
"""
import argparse
import os
import socket
import sys

import msgpack


def find_socket():
    own = os.path.join(os.environ.get("XDG_RUNTIME_DIR", ""), "moed/rpc")
    return os.environ.get("MOE_SOCKET") or (own if os.path.isabs(own) and os.path.exists(own) else "/run/moed/rpc")


class Error(Exception):
    """What the service has against a request: {code, name, message, data}."""


class Client:
    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(path)
        self.unpacker = msgpack.Unpacker(raw=False, strict_map_key=False, max_buffer_size=32 << 20)
        self.last_id = 0

    def frames(self):
        while True:
            yield from self.unpacker
            data = self.socket.recv(65536)
            if not data:
                raise ConnectionError("the service closed the connection")
            self.unpacker.feed(data)

    def call(self, method, on_notify=lambda method, params: None, **params):
        """The result of @method; meanwhile on_notify(method, params) for each notification."""
        self.last_id += 1
        self.socket.sendall(msgpack.packb([0, self.last_id, method, [params]]))
        for kind, *rest in self.frames():
            if kind == 2:
                if rest[0] == "rpc.error":
                    raise ConnectionError(rest[1][0]["message"])
                on_notify(rest[0], rest[1][0])
            elif kind == 1 and rest[0] == self.last_id:
                _, error, result = rest
                if error:
                    raise Error(error)
                return result


def main():
    args = argparse.ArgumentParser(description="Ask moed something.")
    args.add_argument("--socket", default=find_socket())
    args.add_argument("--max-tokens", type=int, default=256)
    args.add_argument("prompt")
    args = args.parse_args()

    def show(method, params):
        if method == "generate.delta" and params["kind"] == "text":
            print(params["text"], end="", flush=True)

    try:
        result = Client(args.socket).call("generate", show, stream=True, max_tokens=args.max_tokens,
                                          messages=[{"role": "user", "content": args.prompt}])
    except Error as e:
        sys.exit(f"client.py: {e.args[0]['message']}")
    except OSError as e:
        sys.exit(f"client.py: {args.socket}: {e}")
    print(f"\n[{result['usage']['generated']} tokens, {result['stop_reason']}]", file=sys.stderr)


if __name__ == "__main__":
    main()
