"""What comes from a server is checked before it is believed."""

from __future__ import annotations

import os
import socket
import struct

import pytest
import torch

from bench.isolation import wire
from bench.isolation.wire import Garbage, Gone, Memory, TooLarge


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
def test_tensors_come_back_as_they_were(dtype: torch.dtype) -> None:
    memory = Memory.new(1 << 12)
    given = {"a": torch.tensor([[1, 0, 3], [0, 5, 6]]).to(dtype), "b": torch.ones(1).to(dtype), "c": torch.empty(0, 4)}
    places = memory.write(given)
    for name, tensor in given.items():
        found = memory.read(places[name])
        assert found.dtype is tensor.dtype
        assert torch.equal(found, tensor)


def test_what_was_read_does_not_change_with_the_memory() -> None:
    memory = Memory.new(1 << 12)
    found = memory.read(memory.write({"x": torch.ones(4)})["x"])
    memory.write({"x": torch.zeros(4)})
    assert torch.equal(found, torch.ones(4))


@pytest.mark.parametrize(
    "place",
    [
        None,
        ["float32", [4]],
        ["object", [4], 0],
        ["float32", [-1], 0],
        ["float32", [4], -8],
        ["float32", [4], 3],
        ["float32", [1 << 40], 0],
        ["float32", [1024], 8],
        ["float32", [2.5], 0],
        ["float32", [True], 0],
        ["float32", [1] * 9, 0],
        ["float32", "44", 0],
        [["float32"], [4], 0],
    ],
)
def test_a_tensor_that_cannot_be_there_is_garbage(place: object) -> None:
    with pytest.raises(Garbage):
        Memory.new(4096).read(place)


def test_what_does_not_fit_says_how_much_it_needs() -> None:
    with pytest.raises(TooLarge) as error:
        Memory.new(4096).write({"x": torch.zeros(5000)})
    assert error.value.needed == 20_000


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="sealed memory is Linux's")
def test_the_memory_cannot_be_made_smaller_under_its_reader() -> None:
    memory = Memory.new(8192)
    for size in (4096, 16384):
        with pytest.raises(OSError):
            os.ftruncate(memory.file, size)


def test_messages_and_open_files_arrive(tmp_path) -> None:
    ours, theirs = socket.socketpair()
    with (tmp_path / "file").open("w+") as file:
        wire.send(ours, {"a": [1, "ü"]}, (file.fileno(),))
        message, files = wire.receive_with_files(theirs)
        assert message == {"a": [1, "ü"]}
        assert os.fstat(files[0]).st_ino == os.fstat(file.fileno()).st_ino
        os.close(files[0])
    ours.close()
    with pytest.raises(Gone):
        wire.receive(theirs)


@pytest.mark.parametrize(
    "sent",
    [
        struct.pack("<I", 1 << 31) + b"x",
        struct.pack("<I", 2) + b"\xff\xfe",
        struct.pack("<I", 3) + b"[1]",
        struct.pack("<I", 40_000) + b"[" * 40_000,
    ],
)
def test_a_message_that_is_none_is_garbage(sent: bytes) -> None:
    ours, theirs = socket.socketpair()
    ours.sendall(sent)
    with pytest.raises(Garbage):
        wire.receive(theirs)
