"""What a data set is made of: examples in a fixed order, in three fixed splits."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.contracts.inputs import DataInfo

#: One training image in this many belongs to the validation split.
VALIDATION_SHARE = 10
_DIGEST_BATCH = 1024


Rows = Tensor | slice | list[int]


@dataclass(frozen=True, eq=False)
class Split:
    """Examples in a fixed order in which every prefix is as balanced over the classes as can be.

    Attributes:
        inputs: as they are held: float32 ``(N, *shape)`` in the box of the data set, or uint8, a quarter of the memory,
            which stands for ``k / 255``. Read them by :meth:`at`, :meth:`batches` or :attr:`x`, which give floats.
        y: int64 ``(N,)``.
        ids: one name per example, for example ``digits/0123`` or ``test/cat/0042.jpg``.
        known_digest: :attr:`digest`, where whoever read the very same content before has kept it.
    """

    inputs: Tensor
    y: Tensor
    ids: list[str]
    known_digest: str | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as NumPy arrays, which processes that share an object store map instead of copying."""
        return _unpickled, (self.inputs.contiguous().numpy(), self.y.contiguous().numpy(), self.ids, self.digest)

    @cached_property
    def x(self) -> Tensor:
        """All inputs, float32 ``(N, *shape)``. Of uint8 inputs it is a copy, four times as large, which is kept."""
        return self.at(slice(None))

    def at(self, rows: Rows) -> Tensor:
        """Some of the inputs, float32 ``(n, *shape)``: what ``x[rows]`` is, without making ``x``."""
        some = self.inputs[rows]
        return some.to(torch.float32).div_(255) if some.dtype == torch.uint8 else some

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """``(x, y)`` of ``size`` examples at a time, in order; of fewer in the last one."""
        for start in range(0, len(self), size):
            rows = slice(start, start + size)
            yield self.at(rows), self.y[rows]

    def take(self, n: int) -> Split:
        """The first ``n`` examples; all of them when there are fewer."""
        return self if n >= len(self) else Split(self.inputs[:n], self.y[:n], self.ids[:n])

    @cached_property
    def digest(self) -> str:
        """SHA-256 over inputs, labels and ids. It is the same whether the inputs are held as uint8 or as floats."""
        if self.known_digest is not None:
            return self.known_digest
        kind = torch.float32 if self.inputs.dtype == torch.uint8 else self.inputs.dtype
        digest = hashlib.sha256(f"{kind} {tuple(self.inputs.shape)}".encode())
        for x, _ in self.batches(_DIGEST_BATCH):
            digest.update(x.contiguous().numpy().data)
        digest.update(self.y.contiguous().numpy().data)
        digest.update("\n".join(self.ids).encode())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Data:
    """A data set. Every split has the input shape and the classes of ``info``; train and validation may be empty."""

    info: DataInfo
    class_names: list[str]
    train: Split
    validation: Split
    test: Split
    version: int = 1

    @property
    def samples(self) -> Split:
        """Examples to look at a model with: the validation split; of data without one, the test split."""
        return self.validation if len(self.validation) else self.test


def _unpickled(inputs: NDArray[Any], y: NDArray[Any], ids: list[str], digest: str) -> Split:
    with warnings.catch_warnings():  # a mapped array is read-only; nobody writes into the data
        warnings.simplefilter("ignore", UserWarning)
        return Split(torch.from_numpy(inputs), torch.from_numpy(y), ids, digest)


def data_digest(split: Split) -> str:
    """SHA-256 over the images, labels and ids of a split; part of every result's key."""
    return split.digest


def example_digests(split: Split) -> list[str]:
    """The first 16 hexadecimal digits of SHA-256 over each example's input and label."""
    found = []
    for inputs, labels in split.batches(_DIGEST_BATCH):
        for x, y in zip(inputs, labels.tolist(), strict=True):
            sha = hashlib.sha256(f"{x.dtype} {tuple(x.shape)} {y}\n".encode())
            sha.update(x.contiguous().numpy().data)
            found.append(sha.hexdigest()[:16])
    return found


def _hash(identifier: str) -> bytes:
    return hashlib.sha256(identifier.encode()).digest()


def balanced_order(ids: list[str], labels: Iterable[int]) -> list[int]:
    """Positions in an order that takes one example of every class in turn, shuffled by the hash of the ids.

    It depends on names alone, so examples added later leave the relative order of the others as it was.
    """
    members: dict[int, list[tuple[bytes, int]]] = {}
    for position, label in enumerate(labels):
        members.setdefault(label, []).append((_hash(ids[position]), position))
    rounds = [(turn, *entry) for entries in members.values() for turn, entry in enumerate(sorted(entries))]
    return [position for _, _, position in sorted(rounds)]


def validation_ids(ids: list[str], labels: Iterable[int]) -> set[str]:
    """The training ids held out for validation: about a tenth, by hash, and one at least of each class.

    A class with a single example keeps it for training.
    """
    held_out = set()
    members: dict[int, list[tuple[bytes, str]]] = {}
    for identifier, label in zip(ids, labels, strict=True):
        members.setdefault(label, []).append((_hash("validation/" + identifier), identifier))
    for entries in members.values():
        chosen = [name for h, name in entries if int.from_bytes(h[:8], "big") % VALIDATION_SHARE == 0]
        if not chosen and len(entries) > 1:
            chosen = [min(entries)[1]]
        held_out.update(chosen[: len(entries) - 1])
    return held_out


@dataclass(frozen=True)
class Part:
    """A part of a data set: uint8 or float32 ``(N, C, H, W)``, int64 ``(N,)``, a name for each example."""

    images: NDArray[Any]
    labels: NDArray[np.int64]
    ids: list[str]


def numbered(part: str, n: int) -> list[str]:
    """Ids of examples that have no names, by their place in the published file."""
    return [f"{part}/{i:05d}" for i in range(n)]


def _split(part: Part, positions: list[int]) -> Split:
    """Some of the examples of a part, in balanced order."""
    names = [part.ids[p] for p in positions]
    order = [positions[i] for i in balanced_order(names, part.labels[positions].tolist())]
    ids = [part.ids[p] for p in order]
    return Split(torch.from_numpy(part.images[order]), torch.from_numpy(part.labels[order]), ids)


def with_validation(
    info: DataInfo, class_names: list[str], train: Part, test: Part, version: int, validation: Part | None = None
) -> Data:
    """A data set published as a training and a test part; ``validation``: a third one, else held out from the first."""
    held_out = set[str]() if validation is not None else validation_ids(train.ids, train.labels.tolist())
    held = [i for i, name in enumerate(train.ids) if name in held_out]
    return Data(
        info,
        class_names,
        _split(train, [i for i, name in enumerate(train.ids) if name not in held_out]),
        _split(train, held) if validation is None else _split(validation, list(range(len(validation.ids)))),
        _split(test, list(range(len(test.ids)))),
        version,
    )
