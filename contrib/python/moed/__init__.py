# SPDX-License-Identifier: Apache-2.0
"""Ask moed, the language model service of this machine.

    with moed.Client() as client:
        print(client.ask("What does grep do?").text)
"""
from .aio import AsyncClient, AsyncSession
from .client import Client, Session
from .protocol import Answer, Busy, Error, Message, Piece, find_socket

__all__ = ["Answer", "AsyncClient", "AsyncSession", "Busy", "Client", "Error", "Message", "Piece", "Session", "find_socket"]
__version__ = "0.1.0"
