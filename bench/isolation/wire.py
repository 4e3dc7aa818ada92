"""What a judge and a model server say to each other: short JSON messages over a socket, tensors in shared memory.

Nothing that a server sends can run code on the other side: a message is a length and JSON of limited size, a tensor a
name of a dtype, a shape and raw bytes. The memory belongs to the side that judges; its size is sealed, so that a server
cannot make it smaller under a reader, and what is read is copied before it is looked at.
"""

from __future__ import annotations

import fcntl
import json
import math
import mmap
import os
import socket
import struct
import tempfile
from typing import Any

import torch
from torch import Tensor

_LENGTH = struct.Struct("<I")
#: Bytes of one message; descriptors that come with one.
_LONGEST, _DESCRIPTORS = 1 << 20, 4
#: Dimensions of a tensor.
_DIMENSIONS = 8
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float16, torch.bfloat16, torch.float32, torch.float64,
        torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.bool,
    )
}  # fmt: skip


class Garbage(Exception):
    """What came is not what this side understands."""


class Gone(Exception):
    """The other side has closed the connection."""


class TooLarge(Exception):
    """A tensor does not fit into the shared memory; ``needed``: the bytes that would do."""

    def __init__(self, needed: int) -> None:
        super().__init__(f"{needed} bytes")
        self.needed = needed


def send(sock: socket.socket, message: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
    """Send one message, with open files where there are any."""
    body = json.dumps(message, separators=(",", ":")).encode()
    if len(body) > _LONGEST:
        raise Garbage(f"a message of {len(body)} bytes")
    data = _LENGTH.pack(len(body)) + body
    try:
        sent = socket.send_fds(sock, [data], list(descriptors)) if descriptors else sock.send(data)
        if sent < len(data):
            sock.sendall(data[sent:])
    except (BrokenPipeError, ConnectionResetError):
        raise Gone from None


def receive(sock: socket.socket) -> dict[str, Any]:
    """The next message; raises :class:`Gone`, :class:`Garbage` or ``TimeoutError``.

    Open files that come along are closed.
    """
    return _message(sock, _exactly(sock, _LENGTH.size))


def receive_with_files(sock: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """The next message and the descriptors of the open files that came along."""
    head, files, *_ = socket.recv_fds(sock, _LENGTH.size, _DESCRIPTORS)
    return _message(sock, head + _exactly(sock, _LENGTH.size - len(head)) if head else b""), files


def _message(sock: socket.socket, head: bytes) -> dict[str, Any]:
    if not head:
        raise Gone
    (length,) = _LENGTH.unpack(head)
    if length > _LONGEST:
        raise Garbage(f"a message of {length} bytes")
    try:
        message = json.loads(_exactly(sock, length))
    except (ValueError, RecursionError):
        raise Garbage("a message that is no JSON") from None
    if not isinstance(message, dict):
        raise Garbage("a message that is no JSON object")
    return message


def _exactly(sock: socket.socket, count: int) -> bytes:
    parts = []
    while count:
        try:
            part = sock.recv(min(count, 1 << 16))
        except ConnectionResetError:
            raise Gone from None
        if not part:
            raise Gone
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


class Memory:
    """A piece of memory that two processes share, and how a tensor lies in it.

    Args:
        file: an open file, which then belongs to this object; :meth:`new` makes one.
    """

    def __init__(self, file: int) -> None:
        self.file, self.size = file, os.fstat(file).st_size
        self._map = mmap.mmap(file, self.size)
        self._bytes = torch.frombuffer(self._map, dtype=torch.uint8)

    @classmethod
    def new(cls, size: int) -> Memory:
        """Memory of ``size`` bytes, whose size nobody can change."""
        size = max(size, mmap.PAGESIZE)
        if not hasattr(os, "memfd_create"):
            with tempfile.TemporaryFile() as file:
                file.truncate(size)
                return cls(os.dup(file.fileno()))
        handle = os.memfd_create("bench", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(handle, size)
        fcntl.fcntl(handle, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        return cls(handle)

    def close(self) -> None:
        """Close the file. The memory itself goes when nothing looks at it any more."""
        if self.file >= 0:
            os.close(self.file)
            self.file = -1

    def write(self, tensors: dict[str, Tensor]) -> dict[str, Any]:
        """Put tensors in; returns where and what they are, for a message.

        Raises:
            TooLarge: when they do not fit.
        """
        needed = sum(_padded(tensor.numel() * tensor.element_size()) for tensor in tensors.values())
        if needed > self.size:
            raise TooLarge(needed)
        at, places = 0, {}
        for name, tensor in tensors.items():
            length = tensor.numel() * tensor.element_size()
            if length:
                self._bytes[at : at + length].view(tensor.dtype).view(tensor.shape).copy_(tensor)
            places[name] = [str(tensor.dtype).removeprefix("torch."), list(tensor.shape), at]
            at += _padded(length)
        return places

    def read(self, place: object) -> Tensor:
        """A copy of the tensor that a message says lies here; :class:`Garbage` where that cannot be."""
        try:
            assert isinstance(place, list)
            kind, size, at = place
            dtype, shape = _DTYPES[kind], tuple(size)
            whole = all(type(number) is int and number >= 0 for number in (*shape, at))
        except (AssertionError, KeyError, TypeError, ValueError):
            raise Garbage("a tensor of no known kind") from None
        length = math.prod(shape) * dtype.itemsize if whole else 0
        if not whole or len(shape) > _DIMENSIONS or at % 8 or at + length > self.size:
            raise Garbage("a tensor outside the shared memory")
        if not length:
            return torch.empty(shape, dtype=dtype)
        raw = self._bytes[at : at + length].clone()
        return (raw != 0).view(shape) if dtype is torch.bool else raw.view(dtype).view(shape)


def _padded(length: int) -> int:
    return -(-length // 8) * 8
