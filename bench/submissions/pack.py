"""`bench submit`: a bundle of one evaluated defense, with all that somebody else needs to judge it again."""

from __future__ import annotations

import importlib.metadata
import inspect
import platform
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from bench.contracts.defense import DefenseSpec
from bench.contracts.errors import InputError
from bench.contracts.isolation import Level, weakest
from bench.data.splits import Data
from bench.plugins.references import find
from bench.plugins.registry import DEFENSES
from bench.plugins.resolve import load_defense
from bench.running.cell import defense_key
from bench.storing.checkpoints import TrainingSettings, record_path
from bench.storing.current import current_headers
from bench.storing.digest import source_files
from bench.storing.keys import differences
from bench.storing.names import slug
from bench.storing.provenance import hardware
from bench.storing.records import CLEAN, DefenseRecord, Record, SuiteRecord
from bench.storing.store import Store, to_json, write_atomically
from bench.storing.submitted import bundled_spec
from bench.submissions.contents import check
from bench.submissions.manifest import Manifest, write_manifest
from bench.submissions.records import CardRecord, Check, Checks, ClaimedNumbers, Environment
from bench.submissions.suite_key import suite_key
from bench.summary.numbers import DefenseSummary


@dataclass(frozen=True)
class Portable:
    """A defense as it can be built from the files of a bundle.

    Attributes:
        spec: how it is given to this process: a shipped name, or a file.
        files: its code, each with the place that it has below ``code/``; none of a shipped defense.
        reference: how it is built from the bundle.
    """

    spec: DefenseSpec
    files: dict[Path, str]
    reference: str


def portable(spec: DefenseSpec, extra: Sequence[Path] = ()) -> Portable:
    """Find the code of a defense. A module, or one that a package registers, is submitted as the file it is in.

    Args:
        extra: further files that its code reads, such as weights in a safetensors file; beside it or below.

    Raises:
        InputError: when there is no such defense, it is a published model that nobody has written here, or an extra
            file lies elsewhere or is none that a bundle may hold.
    """
    if spec.reference in DEFENSES.built_in():
        if extra:
            raise InputError(f"--with {extra[0]}: {spec.reference} is shipped with the harness and needs no files")
        return Portable(spec, {}, spec.reference)
    found = find(spec.reference, DEFENSES)
    file = inspect.getsourcefile(found.module)
    if file is None or spec.reference.partition(":")[0] in ("timm", "torchvision", "hf", "robustbench"):
        raise InputError(f"{spec.reference}: has no code of its own; submit a file with a function that returns it")
    place, _, member = spec.reference.rpartition(":")
    is_path = (place or member).endswith(".py") or Path(place or member).is_dir()
    if not is_path:
        member = member if place else DEFENSES.entry(spec.reference).target.rpartition(":")[2]
        spec = replace(spec, reference=f"{file}:{member}")
        place = file
    files = source_files(found.obj, found.module)
    main = Path(place or member).resolve()
    root = main / "__init__.py" if main.is_dir() else main
    base = root.parents[len(Path(files[root]).parts) - 1]
    for path in extra:
        here = path.resolve()
        if not here.is_relative_to(base) or not here.is_file():
            raise InputError(f"--with {path}: expected a file in {base}, where the code is")
        files[here] = here.relative_to(base).as_posix()
    below = "code/" + main.relative_to(base).as_posix()
    return Portable(spec, files, f"{below}:{member}" if place else below)


def frozen() -> list[str]:
    """Every installed distribution as ``NAME==VERSION``, sorted."""
    found = {(d.metadata["Name"] or "").lower(): d.version for d in importlib.metadata.distributions()}
    return [f"{name}=={version}" for name, version in sorted(found.items()) if name]


def environment(device: str, isolation: str | None = None) -> Environment:
    """This process's."""
    return Environment(
        packages=frozen(), python=platform.python_version(), hardware=hardware(device), isolation=isolation
    )


def write(folder: Path, name: str, record: Record) -> None:
    """Write one record of a bundle."""
    write_atomically(folder / name, to_json(record).encode())


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder that becomes ``out`` when the block ends well, and is gone when it does not.

    Raises:
        InputError: when ``out`` exists, or cannot be written.
    """
    if out.exists() or out.is_symlink():
        raise InputError(f"out {out}: exists already; name a folder that does not")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{out.name}-", suffix=".part", dir=out.parent))
    except OSError as error:
        raise InputError(f"out {out}: cannot be written ({error.strerror})") from None
    try:
        yield staging
        staging.chmod(0o755)
        staging.rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def pack(
    staging: Path,
    packed: Portable,
    store: Store,
    suite: SuiteRecord,
    data: Data,
    found: DefenseSummary,
    checks: Checks,
    *,
    by: str,
    note: str,
    device: str,
    training: TrainingSettings,
) -> Manifest:
    """Write the bundle of a defense whose evaluation is complete.

    Raises:
        InputError: when the results are not whole, as after `bench compact`, or the code in the bundle builds another
            defense than was evaluated.
    """
    record = found.record
    level = _copy_rows(store, suite, record, staging / "rows")
    for source, place in packed.files.items():
        target = staging / "code" / place
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        if target.suffix not in (".py", ".json", ".safetensors"):
            raise InputError(f"{source.name}: a bundle holds .py, .json and .safetensors alone")
        check(target, place)
    loaded = load_defense(packed.spec, data.info, device, training)
    for checkpoint in filter(None, (loaded.checkpoint, loaded.borrowed)):
        weights = staging / "weights" / checkpoint.parent.name
        weights.mkdir(parents=True, exist_ok=True)
        for path in (checkpoint, record_path(checkpoint)):
            shutil.copyfile(path, weights / path.name)
    own = bundled_spec(staging, packed.reference, packed.spec.params)
    try:
        again = load_defense(own, data.info, device, training)
    except InputError as error:
        raise InputError(f"the code in the bundle does not stand alone: {error}; --with FILE adds a file") from None
    if (key := defense_key(own, again)) != record.key:
        why = "; ".join(differences(record.key, key, "defense"))
        raise InputError(f"the code in the bundle builds another defense than was evaluated: {why}")
    write(staging, "suite.json", suite)
    write(staging, "defense.json", record.model_copy(update={"reference": packed.reference}))
    write(staging, "environment.json", environment(device, level))
    write(staging, "card.json", CardRecord(**{name: getattr(record, name) for name in CardRecord.model_fields}))
    write(staging, "checks.json", checks)
    left = {attack.record.name: attack.robust.value if attack.robust else None for attack in found.attacks}
    claim = ClaimedNumbers(
        standard=found.standard.value, worst_case=found.worst_case.value, examples=found.worst_case.n, attacks=left
    )
    write(staging, "claim.json", claim)
    return write_manifest(
        staging,
        kind="defense",
        suite=suite.name,
        suite_key=suite_key(suite, packed.reference),
        defense=record.name,
        reference=packed.reference,
        params=packed.spec.params,
        by=by,
        note=note,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def _copy_rows(store: Store, suite: SuiteRecord, record: DefenseRecord, into: Path) -> Level:
    """Every shard that counts, each with all its adversarial inputs; returns the weakest level they were made under."""
    levels: list[Level] = []
    for attack in (None, *suite.attacks):
        name = CLEAN if attack is None else attack.name
        for file, header in current_headers(store, suite, record, attack):
            if header.x_adv_rows is not None or file.is_joined:
                raise InputError(f"{file}: was compacted, and its adversarial inputs are gone; evaluate it anew")
            levels.append(header.isolation)
            folder = into / slug(name)
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file.path, folder / file.path.name)
            if header.x_adv_sha256:
                images = file.path.with_suffix(".safetensors")
                shutil.copyfile(images, folder / images.name)
    return weakest(levels)


def checked(findings: Sequence[tuple[str, str, str]]) -> list[Check]:
    """Findings as they are written: verdict, rule and detail of each."""
    return [Check(verdict=verdict, what=what, detail=detail) for verdict, what, detail in findings]
