"""`bench submit-attack`: adversarial inputs alone, from a safetensors file or a folder of pictures, as a bundle."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from bench.contracts.errors import InputError, did_you_mean, one_line
from bench.contracts.threat import Lp
from bench.data.load import load_data
from bench.data.splits import Data
from bench.running.describe import suite_record
from bench.storing.names import readable
from bench.storing.records import SuiteRecord
from bench.storing.store import pack_tensors, write_atomically
from bench.submissions.contents import LIMITS, tensors
from bench.submissions.manifest import Manifest, check_author, write_manifest
from bench.submissions.pack import environment, new_folder, write
from bench.submissions.records import ClaimedPoints
from bench.submissions.suite_key import suite_key
from bench.suites.config import Suite
from bench.upkeep.points import Points

#: Bytes of one picture's file: many more than any that holds nothing but its pixels.
_PICTURE_BYTES = 16 << 20


@dataclass(frozen=True)
class PointsSubmission:
    """What ``bench submit-attack`` was asked for."""

    suite: Suite
    defense: str
    images: Path
    out: Path
    by: str
    note: str
    data_root: Path | None


def submit_points(asked: PointsSubmission) -> tuple[Manifest, int]:
    """Write the bundle; returns its manifest and how many examples are in it.

    Raises:
        InputError: when an image is of no example or another shape, or lies outside the threat model.
    """
    check_author(asked.by, asked.note)
    data = load_data(asked.suite.data, asked.data_root)
    suite = suite_record(asked.suite, data)
    points = _read_images(asked.images, suite, data)
    _check(points, suite, data)
    with new_folder(asked.out) as staging:
        write_atomically(staging / "images.safetensors", pack_tensors({"x_adv": points.x_adv}))
        write(staging, "claim.json", ClaimedPoints(ids=points.ids))
        write(staging, "environment.json", environment("cpu"))
        made = write_manifest(
            staging,
            kind="attack",
            suite=suite.name,
            suite_key=suite_key(suite, None),
            defense=asked.defense,
            reference="",
            by=asked.by,
            note=asked.note,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )
    return made, len(points.ids)


def read_points(bundle: Path, suite: SuiteRecord) -> Points:
    """The images of a bundle that was taken in.

    Raises:
        InputError: when they are not those of examples of the suite, or of another shape.
    """
    try:
        ids = ClaimedPoints.model_validate_json((bundle / "claim.json").read_bytes()).ids
    except (OSError, ValueError):
        raise InputError("bundle claim.json: is missing, or does not name examples") from None
    path = bundle / "images.safetensors"
    if not path.is_file():
        raise InputError("bundle: holds no images.safetensors")
    return Points(_known(ids, suite, "bundle claim.json"), _x_adv(path, len(ids), suite, "bundle images.safetensors"))


def _known(ids: list[str], suite: SuiteRecord, where: str) -> list[str]:
    known = set(suite.ids)
    for example in ids:
        if example not in known:
            near = did_you_mean(example, suite.ids) if len(suite.ids) <= 1000 else ""
            raise InputError(f"{where}: {one_line(example)[:100]!r} is no example of {suite.name}{near[:200]}")
    if len(set(ids)) != len(ids):
        raise InputError(f"{where}: names an example twice")
    if not ids:
        raise InputError(f"{where}: no examples")
    return ids


def _x_adv(path: Path, n: int | None, suite: SuiteRecord, where: str) -> Tensor:
    """The tensor ``x_adv`` of a file, looked at before it is read."""
    if path.stat().st_size > LIMITS[".safetensors"]:
        raise InputError(f"{where}: {path.stat().st_size} bytes, of at most {LIMITS['.safetensors']}")
    held = tensors(path, where)
    kind, shape = held.get("x_adv", ("", ()))
    count = shape[0] if n is None and shape else n
    if kind not in ("F32", "F16", "F64", "BF16") or shape != (count, *suite.shape):
        expected = ("N" if n is None else n, *suite.shape)
        got = f"{kind} {shape}" if kind else ", ".join(held)[:100] or "nothing"
        raise InputError(f"{where}: expected the tensor x_adv, floats of shape {expected}, got {got}")
    return safetensors.torch.load_file(path)["x_adv"].float()


def _read_images(path: Path, suite: SuiteRecord, data: Data) -> Points:
    if path.is_dir():
        return _read_pictures(path, suite, data)
    if not path.is_file():
        raise InputError(f"--images {path}: no such file or folder")
    if path.suffix != ".safetensors":
        raise InputError(f"--images {path}: expected a safetensors file with x_adv, or a folder of PNG files")
    x_adv = _x_adv(path, None, suite, f"--images {path}")
    with safetensors.safe_open(path, "np") as file:
        words = file.metadata() or {}
    named = [line for line in words.get("ids", "").split("\n") if line]
    if not named and len(x_adv) > len(suite.ids):
        raise InputError(f"--images {path}: {len(x_adv)} images, the suite has {len(suite.ids)} examples")
    ids = named or suite.ids[: len(x_adv)]
    if len(ids) != len(x_adv):
        raise InputError(f"--images {path}: {len(x_adv)} images, its metadata name {len(ids)} ids")
    return Points(_known(ids, suite, f"--images {path}"), x_adv)


def _read_pictures(folder: Path, suite: SuiteRecord, data: Data) -> Points:
    """PNG files named by id, ``test/7.png`` or ``test-7.png``. What 8 bits have rounded out of the ball is put back."""
    if suite.kind != "image":
        raise InputError(f"--images {folder}: the inputs of {suite.name} are no pictures; give a safetensors file")
    names = {name: example for example in suite.ids for name in (example, readable(example))}
    ids, images = [], []
    for path in sorted(folder.rglob("*.png")):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name not in names:
            raise InputError(f"--images {path}: no example of {suite.name} is called so{did_you_mean(name, suite.ids)}")
        ids.append(names[name])
        images.append(_picture(path, suite))
    if not ids:
        raise InputError(f"--images {folder}: holds no PNG files")
    x_adv, x = torch.stack(images), _clean(_known(ids, suite, f"--images {folder}"), suite, data)
    back = _threat(suite).project_(x_adv.clone(), x)
    half = 0.5 * (suite.high - suite.low) / 255 + 1e-6
    near = (back - x_adv).abs().flatten(1).amax(1) <= half
    return Points(ids, torch.where(near.view(-1, *[1] * (x.ndim - 1)), back, x_adv))


def _picture(path: Path, suite: SuiteRecord) -> Tensor:
    """One picture ``(C, H, W)``; its size is looked at before its pixels are unpacked."""
    channels, height, width = suite.shape
    if path.stat().st_size > _PICTURE_BYTES:
        raise InputError(f"--images {path}: {path.stat().st_size} bytes, of at most {_PICTURE_BYTES}")
    mode = {1: "L", 3: "RGB"}.get(channels)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with Image.open(path, formats=["PNG"]) as picture:
                if picture.size != (width, height) or picture.mode != mode:
                    got = f"{picture.size[0]}×{picture.size[1]} {picture.mode}"
                    raise InputError(f"--images {path}: expected {width}×{height} {mode}, got {got}")
                pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Warning, Image.DecompressionBombError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"--images {path}: is no PNG file that can be read ({one_line(str(error))[:100]})") from None
    values = pixels.view(height, width, channels).permute(2, 0, 1).float() / 255
    return suite.low + values * (suite.high - suite.low)


def _threat(suite: SuiteRecord) -> Lp:
    return Lp(suite.norm, suite.eps, suite.low, suite.high)  # type: ignore[arg-type]


def _clean(ids: list[str], suite: SuiteRecord, data: Data) -> Tensor:
    split = getattr(data, suite.split)
    position = {example: i for i, example in enumerate(split.ids)}
    found: Tensor = split.at([position[example] for example in ids])
    return found


def _check(points: Points, suite: SuiteRecord, data: Data) -> None:
    reasons = _threat(suite).violations(_clean(points.ids, suite, data), points.x_adv)
    bad = [(example, why) for example, why in zip(points.ids, reasons, strict=True) if why != "ok"]
    if len(bad) == len(points.ids):
        raise InputError(f"--images: none is inside the threat model ({bad[0][0]}: {bad[0][1]})")
