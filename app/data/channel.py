"""Messages between this process and a loader worker: small ones through a socket, tensors in memory of their own.

The tensors of a batch lie in a file without a name (memfd), whose descriptor travels with the message. From then on the
kernel has it: it arrives even when its sender is stopped or dead. torch's own queue connects back to the sender for
every tensor, and waits for a stopped one for ever. Nothing is left in /dev/shm, nor is that folder's size a limit.
"""

from __future__ import annotations

import mmap
import os
import pickle
import select
import socket
import struct
import tempfile
from collections.abc import Sequence
from typing import Any

import torch

LENGTH = struct.Struct("!Q")
CHUNK = 1 << 16
ALIGNMENT = 64
"""Bytes: where a tensor may begin."""
Layout = list[tuple[torch.dtype, tuple[int, ...], int]]
"""Type, shape and place in bytes of each tensor in one file."""
CLOSE_ON_EXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


class Channel:
    """This process's end of the socket to a worker; nothing here waits for the worker but `exchange`."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._unsent = bytearray()
        self._received = bytearray()
        self._descriptors: list[int] = []
        self.closed = False
        """The other end is gone; what it sent before can still be taken."""

    def post(self, message: Any) -> None:
        """Sends `message`, now or, as far as the socket is full, during the next `exchange`."""
        content = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        self._unsent += LENGTH.pack(len(content)) + content
        self._send()

    def exchange(self, seconds: float) -> bool:
        """Sends and receives what is there, after waiting for it for at most `seconds`; False: nothing came."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN | (select.POLLOUT if self._unsent else 0))
        if not poll.poll(1000 * seconds):
            return False
        self._send()
        try:
            content, descriptors, *_ = socket.recv_fds(self._socket, CHUNK, 8, CLOSE_ON_EXEC)
        except BlockingIOError:
            return False
        except ConnectionError:  # it left with requests unread
            self.closed = True
            return False
        self.closed = not content
        self._received += content
        self._descriptors += descriptors
        return bool(content)

    def take(self) -> tuple[Any, list[torch.Tensor]] | None:
        """The next message and its tensors; None: it is not here yet, or not all of it."""
        if len(self._received) < LENGTH.size:
            return None
        end = LENGTH.size + LENGTH.unpack_from(self._received)[0]
        if len(self._received) < end:
            return None
        message, layout = pickle.loads(self._received[LENGTH.size : end])
        del self._received[:end]
        return message, _map_tensors(self._descriptors.pop(0), layout) if layout else []

    def close(self) -> None:
        """Closes the socket and forgets what nobody took."""
        self._socket.close()
        while self._descriptors:
            os.close(self._descriptors.pop())

    def _send(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            return
        except ConnectionError:
            self._unsent.clear()  # the next `exchange` finds the end


def receive(connection: socket.socket) -> Any:
    """Waits for the next message of `post`; a worker's side.

    Raises:
        EOFError: the other end is gone.
    """
    return pickle.loads(_read(connection, LENGTH.unpack(_read(connection, LENGTH.size))[0]))


def send(connection: socket.socket, message: Any, tensors: Sequence[torch.Tensor]) -> None:
    """Sends a message for `Channel.take`; a worker's side."""
    layout: Layout = []
    size = 0
    for tensor in tensors:
        size += -size % ALIGNMENT
        layout.append((tensor.dtype, tuple(tensor.shape), size))
        size += tensor.nbytes
    content = pickle.dumps((message, layout), pickle.HIGHEST_PROTOCOL)
    content = LENGTH.pack(len(content)) + content
    if tensors:
        descriptor = _nameless_file(size)
        try:
            memory = mmap.mmap(descriptor, size)
            for tensor, place in zip(tensors, layout, strict=True):
                _view(memory, *place).copy_(tensor)
            content = content[socket.send_fds(connection, [content], [descriptor]) :]
        finally:
            os.close(descriptor)
    connection.sendall(content)


def _nameless_file(size: int) -> int:
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("batch")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor


def _map_tensors(descriptor: int, layout: Layout) -> list[torch.Tensor]:
    try:
        memory = mmap.mmap(descriptor, 0)  # kept by the tensors, which are all that refers to it
    finally:
        os.close(descriptor)
    return [_view(memory, *place) for place in layout]


def _view(memory: mmap.mmap, dtype: torch.dtype, shape: tuple[int, ...], offset: int) -> torch.Tensor:
    count = torch.Size(shape).numel()
    return torch.frombuffer(memory, dtype=dtype, count=count, offset=offset).view(shape)


def _read(connection: socket.socket, length: int) -> bytes:
    content = bytearray()
    while len(content) < length:
        chunk = connection.recv(min(length - len(content), 1 << 20))
        if not chunk:
            raise EOFError
        content += chunk
    return bytes(content)
