"""Weight files: where the libraries keep them, each checked against what its source publishes on every load.

Nothing is unpickled: a file is safetensors, or is read with ``weights_only``.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from bench.contracts.errors import InputError
from bench.plugins.hubs.front import need

#: Names under which training scripts wrap a state dict.
_WRAPPED = ("state_dict", "model", "model_state_dict", "net")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            sha.update(chunk)
    return sha.hexdigest()


def check_sha256(what: str, path: Path, published: str) -> None:
    """Raise :class:`InputError` unless a file's SHA-256 begins with what is published of it."""
    found = sha256_of(path)
    if not found.startswith(published):
        shown = f"{found[: len(published)]}, published is {published}"
        raise InputError(f"{what}: {path} is damaged: its SHA-256 is {shown}; delete it to have it downloaded again")


def from_url(what: str, url: str) -> Path:
    """A file of ``torch.hub``'s cache, downloaded when it is not there; checked by the hash in its name, if any."""
    name = url.rpartition("/")[2]
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    published = re.search(r"-([0-9a-f]{8,64})\.", name)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), progress=sys.stderr.isatty())
        except Exception as error:
            raise InputError(f"{what}: {url} cannot be downloaded: {first_line(error)}") from error
    if published:
        check_sha256(what, path, published[1])
    return path


def from_hugging_face(what: str, repo: str, name: str, revision: str | None = None, *, extra: str = "hf") -> Path:
    """A file of a repository on the Hugging Face hub: that of its cache, else downloaded.

    Large files lie in the cache under the SHA-256 that the hub publishes of them, and are checked by it.

    Raises:
        InputError: where there is no such file or repository, it cannot be downloaded, or its hash differs.
    """
    hub = need(what, "huggingface_hub", extra)
    try:
        found = hub.try_to_load_from_cache(repo, name, revision=revision)
        if not isinstance(found, str):
            found = hub.hf_hub_download(repo, name, revision=revision)
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"{what}: {name} of {repo} is not in the cache and cannot be had: {reason}") from error
    path = Path(found)
    blob = path.resolve()
    if re.fullmatch(r"[0-9a-f]{64}", blob.name):
        check_sha256(what, blob, blob.name)
    return path


def read_weights(what: str, path: Path) -> OrderedDict[str, Tensor]:
    """The state dict in a ``.safetensors`` file, or in what ``torch.save`` wrote; a wrapping is taken off.

    Raises:
        InputError: for a missing or damaged file, one that needs unpickling, or one without a state dict.
    """
    path = path.expanduser()
    if not path.is_file():
        raise InputError(f"{what}: weights {path}: no such file")
    try:
        if path.suffix == ".safetensors":
            found: Any = safetensors.torch.load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"{what}: weights {path} cannot be read: {first_line(error)}") from error
    for name in _WRAPPED:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
            break
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise InputError(f"{what}: weights {path}: holds no state dict (names with tensors)")
    state = OrderedDict((str(name).removeprefix("module."), value) for name, value in found.items())
    if versions := getattr(found, "_metadata", None):  # of its layers: some read older files by it
        state._metadata = OrderedDict(  # type: ignore[attr-defined]
            (name.removeprefix("module").removeprefix("."), value) for name, value in versions.items()
        )
    return state


def load_weights_(what: str, network: nn.Module, path: Path, old_names: tuple[str, str] | None = None) -> None:
    """Load a file's weights into a network, every tensor of both.

    Args:
        what: the reference, for messages.
        network: its layers may understand older files in their own way.
        path: as for :func:`read_weights`.
        old_names: a pattern of names in older files, and what replaces it.

    Raises:
        InputError: as :func:`read_weights`, and where names or shapes differ; the first is named.
    """
    state = read_weights(what, path)
    if old_names is not None:
        for name in list(state):
            state[re.sub(*old_names, name)] = state.pop(name)
    try:
        missing, unexpected = network.load_state_dict(state, strict=False)
    except (RuntimeError, ValueError) as error:
        first = next((line.strip() for line in str(error).splitlines()[1:] if line.strip()), first_line(error))
        raise InputError(f"{what}: weights {path}: {first}") from error
    if missing:
        raise InputError(f"{what}: weights {path}: has no {missing[0]!r}, which the network has")
    if unexpected:
        raise InputError(f"{what}: weights {path}: has {unexpected[0]!r}, which the network lacks")


def first_line(error: Exception) -> str:
    """Of a library's message, which may have many; its type where it has none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
