"""Messages between two processes of ours: some JSON and raw bytes, so that neither side runs what the other sends."""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

# Lengths of the JSON and of the bytes that follow it.
LENGTHS = struct.Struct("<IQ")
LONGEST_JSON = 1 << 16


def send(to: socket.socket, what: dict[str, Any], data: bytes = b"") -> None:
    """Send a message. Raises OSError if the other side is gone."""
    head = json.dumps(what).encode()
    to.sendall(LENGTHS.pack(len(head), len(data)) + head)
    if data:
        to.sendall(data)


def receive_json(of: socket.socket) -> tuple[dict[str, Any], int]:
    """Return (what was sent, the length of the bytes that follow). Raises EOFError at the end, ValueError for
    garbage."""
    length, follow = LENGTHS.unpack(receive(of, LENGTHS.size))
    if length > LONGEST_JSON:
        raise ValueError("an answer that cannot be read")
    try:
        what = json.loads(receive(of, length))
    except (ValueError, RecursionError):
        what = None
    if not isinstance(what, dict):
        raise ValueError("an answer that cannot be read")
    return what, follow


def receive(of: socket.socket, length: int) -> bytes:
    """Return so many bytes. Raises EOFError at the end."""
    data = bytearray(length)
    receive_into(of, memoryview(data))
    return bytes(data)


def receive_into(of: socket.socket, target: memoryview) -> None:
    """Fill `target`. Raises EOFError at the end."""
    while len(target):
        n = of.recv_into(target)
        if not n:
            raise EOFError
        target = target[n:]
