"""Whether the rows of a bundle are those of a whole evaluation: which files there are, and what they say they are."""

from __future__ import annotations

from pathlib import Path

from bench.contracts.errors import InputError
from bench.storing.headers import SETTLED
from bench.storing.images import ON_LEVELS, STEPS, WHOLE
from bench.storing.keys import differences
from bench.storing.names import slug
from bench.storing.provenance import torch_release
from bench.storing.reading import read_record
from bench.storing.records import CLEAN, AttackRecord, DefenseRecord, ShardRecord, SuiteRecord
from bench.submissions.contents import tensors


def check_rows(folder: Path, suite: SuiteRecord, record: DefenseRecord, labels: dict[str, int], device: str) -> int:
    """Look at every shard below ``folder``, without judging any of them; returns how many rows there are.

    Args:
        suite: of the receiver; record: of the defense as it was found to be here.
        labels: of the suite's examples by their ids.
        device: type of that on which the rows are judged again.

    Raises:
        InputError: when a shard is of another suite, attack or defense, was made with another torch or device, does
            not hold the examples it should, or lacks an adversarial input; when one is missing, or more than one
            speaks of an example.
    """
    attacks: dict[str, AttackRecord | None] = {slug(attack.name): attack for attack in suite.attacks}
    attacks[CLEAN] = None
    for path in sorted(folder.iterdir()):
        if path.name not in attacks and path.name != "@submission":
            raise InputError(f"bundle rows/{path.name}: suite {suite.name} has no such attack")
    rows = 0
    for name, attack in attacks.items():
        if attack is not None and not attack.applies_to(record.probe.has_detector):
            if (folder / name).exists():
                raise InputError(f"bundle rows/{name}: the defense has no detector that this attack is for")
            continue
        rows += _check_cell(folder / name, suite, record, attack, labels, device)
    return rows


def _check_cell(
    folder: Path,
    suite: SuiteRecord,
    record: DefenseRecord,
    attack: AttackRecord | None,
    labels: dict[str, int],
    device: str,
) -> int:
    key = suite.cell_key(record, attack, torch=torch_release(), device=device)
    at = rows = 0
    found = []
    for path in sorted(folder.glob("*.json")):
        where = f"bundle rows/{folder.name}/{path.name}"
        if not path.stem.isdecimal():
            raise InputError(f"{where}: is no number of a shard")
        try:
            shard = read_record(path, ShardRecord)
        except InputError as error:
            raise InputError(f"{where}{str(error).removeprefix(str(path))}") from None
        if shard.shard != int(path.stem):
            raise InputError(f"{where}: is shard {shard.shard}")
        if not 0 <= shard.start < shard.stop <= len(suite.ids):
            raise InputError(f"{where}: examples {shard.start} to {shard.stop}, of {len(suite.ids)}")
        if why := differences(shard.key, key(shard.start, shard.stop)):
            raise InputError(f"{where}: {why[0]}")
        if shard.status not in SETTLED:
            raise InputError(f"{where}: {shard.status}")
        if shard.status == "ok":
            _check_shard(path, shard, suite, labels, where)
        found.append(shard)
        rows += len(shard.rows)
    numbers = {shard.shard for shard in found if shard.attack != CLEAN and shard.status == "ok"}
    for path in folder.glob("*.safetensors"):
        if not path.stem.isdecimal() or int(path.stem) not in numbers:
            raise InputError(f"bundle rows/{folder.name}/{path.name}: belongs to no shard")
    for shard in sorted(found, key=lambda shard: shard.start):
        if shard.start != at:
            raise InputError(f"bundle rows/{folder.name}: examples {at} to {shard.start} are there twice or not at all")
        at = shard.stop
    if at < suite.examples_run(attack, record.reference):
        raise InputError(f"bundle rows/{folder.name}: lacks the examples from {at} on")
    return rows


def _check_shard(path: Path, shard: ShardRecord, suite: SuiteRecord, labels: dict[str, int], where: str) -> None:
    ids = [row.id for row in shard.rows]
    if ids != suite.ids[shard.start : shard.stop]:
        raise InputError(f"{where}: its rows are not of the examples {shard.start} to {shard.stop}")
    wrong = next((row.id for row in shard.rows if row.label != labels[row.id]), None)
    if wrong is not None:
        raise InputError(f"{where}: {wrong} has another label")
    if shard.attack == CLEAN:
        return
    images = path.with_suffix(".safetensors")
    if shard.x_adv_rows is not None or not images.is_file():
        raise InputError(f"{where}: lacks adversarial inputs")
    held = tensors(images, images.name)
    if not _fit(held, len(ids), suite.shape):
        raise InputError(f"{where}: expected x_adv of shape {(len(ids), *suite.shape)}, got {list(held.values())[:3]}")


def _fit(held: dict[str, tuple[str, tuple[int, ...]]], n: int, shape: tuple[int, ...]) -> bool:
    """Whether these are ``n`` adversarial inputs in either form (``bench.storing.images``), by types and shapes.

    What an attack returned in another shape is stored as it is, as whole inputs.
    """
    kind, (whole, *rest) = held.get(WHOLE, ("", (-1,)))
    if held.keys() == {WHOLE}:
        return whole == n and (kind == "F32" or tuple(rest) != shape)
    if held.keys() != {WHOLE, STEPS, ON_LEVELS} or (kind, tuple(rest)) != ("F32", shape):
        return False
    type_of_steps, (steps, *each) = held[STEPS]
    fits = type_of_steps in ("I8", "I32") and tuple(each) == shape and whole + steps == n
    return fits and held[ON_LEVELS] == ("BOOL", (n,))
