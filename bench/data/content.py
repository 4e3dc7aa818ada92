"""Data sets known by their content, whatever they come in: the published archive, or a folder of lossless images."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from bench.data.splits import Data

_CHUNK = 1024


@dataclass(frozen=True)
class Known:
    """A data set with a name of its own.

    Attributes:
        name: of the data set; results and checkpoints are filed under it.
        version: of its order, ids and splits.
        class_names: in the order of the labels, which is that of the alphabet.
        sha256: :func:`content_digest` of all of its images.
    """

    name: str
    version: int
    class_names: tuple[str, ...]
    sha256: str


#: Krizhevsky 2009. Its ids are ``<part>/<class>/<name>.png``, with the names that the published files give the images.
CIFAR10 = Known(
    "cifar10",
    2,
    ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    "90f9d56ed38a8dba5ead39a4d6282994d6e7337fc8eb6112f0dd99c23c7f2f88",
)


def content_digest(data: Data) -> str:
    """SHA-256 over ids, which name part and class, and pixels, ``(H, W, C)``, of all images held as bytes, by id.

    It depends on neither the order nor the splits.
    """
    pixels: dict[str, bytes] = {}
    for split in (data.train, data.validation, data.test):
        for start in range(0, len(split), _CHUNK):
            rows = slice(start, start + _CHUNK)
            images = split.inputs[rows].permute(0, 2, 3, 1).contiguous().numpy()
            pixels |= {i: hashlib.sha256(image).digest() for i, image in zip(split.ids[rows], images, strict=True)}
    digest = hashlib.sha256()
    for name in sorted(pixels):
        digest.update(f"{name}\n".encode() + pixels[name])
    return digest.hexdigest()


def recognised(data: Data) -> Data | None:
    """The data set under its own name and version where its content is that of a known one, else None."""
    known = CIFAR10
    if data.class_names != list(known.class_names) or content_digest(data) != known.sha256:
        return None
    return replace(data, info=replace(data.info, name=known.name), version=known.version)
