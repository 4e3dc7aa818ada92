"""Results on disk: whole or absent, checked when read, readable by a person."""

from __future__ import annotations

import json
import lzma
import re
from pathlib import Path

import pytest
import torch
from written_results import (
    Results,
    attack_record,
    defense_record,
    row,
    shard_record,
    suite_record,
    timing_record,
)

from bench.contracts.errors import InputError, NewerSchemaError
from bench.storing.images import Images
from bench.storing.joined import JOINED
from bench.storing.names import slug
from bench.storing.reading import read_record
from bench.storing.records import SCHEMA_VERSION, DefenseRecord, GalleryEntry, ShardRecord, SuiteRecord
from bench.storing.store import Store, check_writable, suites, to_json, write_atomically

SUITE = suite_record([attack_record("pgd", params={"steps": 40, "estimator": {"eot": {"of": "identity"}}})], n=6)
DEFENSE = defense_record("ours(random_start=False)", params={"random_start": False}, timing=timing_record())


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(tmp_path / "results", SUITE)


def one_shard(results: Results, number: int = 0) -> ShardRecord:
    rows = [row("e0", 1, detector_score=0.25), row("e1", 0, reason="outside the ball: linf 0.5 > 0.2")]
    results.write_shard(DEFENSE, "pgd", number, x_adv=torch.rand(2, 1, 2, 2), rows=rows, notes=["a cut graph"])
    stored = results.store.shard(DEFENSE.name, "pgd", number)
    assert stored is not None
    return stored


# -- round trips ------------------------------------------------------------------------------------------------


def test_every_record_comes_back_as_it_was(results: Results) -> None:
    entry = GalleryEntry(id="e0", attack="pgd", label=1, clean_prediction=1, adversarial_prediction=2)
    defense = DEFENSE.model_copy(update={"gallery": [entry]})
    results.write_suite()
    results.store.write_defense(defense)
    assert results.store.suite() == SUITE
    assert results.store.defense(defense.name) == defense
    x_adv = torch.rand(2, 1, 2, 2)
    rows = [row("e0", 1), row("e1", 0, detector_score=0.5)]
    record = shard_record(SUITE, DEFENSE, "pgd", 3, start=0, stop=2, rows=rows)
    results.store.write_shard(record, Images({"x_adv": x_adv}))
    stored = results.store.shard(DEFENSE.name, "pgd", 3)
    assert stored is not None
    assert stored.model_copy(update={"x_adv_sha256": ""}) == record
    assert torch.equal(results.store.x_adv(stored), x_adv)


def test_a_failed_shard_has_no_images(results: Results) -> None:
    results.write_shard(DEFENSE, "pgd", 0, status="failed", error="Traceback\nValueError: no")
    stored = results.store.shard(DEFENSE.name, "pgd", 0)
    assert stored is not None
    assert (stored.status, stored.error, stored.x_adv_sha256) == ("failed", "Traceback\nValueError: no", "")
    with pytest.raises(InputError, match="is missing"):
        results.store.x_adv(stored)


def test_nan_adversarial_inputs_are_stored_as_they_are(results: Results) -> None:
    rows = [row("e0", 1), row("e1", 1)]
    results.write_shard(DEFENSE, "pgd", 0, x_adv=torch.full((2, 1, 2, 2), torch.nan), rows=rows)
    stored = results.store.shard(DEFENSE.name, "pgd", 0)
    assert stored is not None
    assert torch.isnan(results.store.x_adv(stored)).all()


def test_what_has_not_been_stored_is_none(results: Results) -> None:
    assert results.store.suite() is None
    assert results.store.defense("ours") is None
    assert results.store.shard("ours", "pgd", 0) is None
    assert list(results.store.defenses()) == []
    assert suites(results.root) == []


def test_suites_and_defenses_are_listed_in_name_order(tmp_path: Path) -> None:
    for suite in ("b", "a"):
        made = Results(tmp_path, suite_record([attack_record("pgd")], name=suite))
        for defense in ("two", "one"):
            made.write_defense(defense_record(defense), {})
    (tmp_path / "stray").mkdir()
    assert suites(tmp_path) == ["a", "b"]
    assert [path.parent.name for path in Store(tmp_path, "a").defenses()] == ["one", "two"]


# -- the form of the files --------------------------------------------------------------------------------------


def test_a_shard_is_json_with_one_line_per_row(results: Results) -> None:
    one_shard(results)
    lines = results.store.shard_path(DEFENSE.name, "pgd", 0).read_text().splitlines()
    rows = [line for line in lines if line.startswith('  ["e')]
    assert len(rows) == 2
    first = json.loads(rows[0].rstrip(","))
    columns = json.loads(next(line for line in lines if line.startswith(' "columns"')).partition(":")[2].rstrip(","))
    assert dict(zip(columns, first, strict=True))["detector_score"] == 0.25
    assert json.loads("\n".join(lines))["status"] == "ok"


def test_a_shard_without_rows_is_json_too(results: Results) -> None:
    record = shard_record(SUITE, DEFENSE, "pgd", 0, status="timeout")
    assert json.loads(to_json(record))["rows"] == []
    results.store.write_shard(record, None)
    assert results.store.shard(DEFENSE.name, "pgd", 0) == record


def test_the_same_record_is_the_same_text() -> None:
    assert to_json(SUITE) == to_json(suite_record(SUITE.attacks, n=6))
    assert to_json(SUITE).endswith("}\n")


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("ours(random_start=False)", "ours(random_start=False)"),
        ("pkg.module.Name", "pkg.module.Name"),
        ("a/../../b c", "a-..-..-b-c-"),
        ("../..", "unnamed-"),
        ("/etc/passwd", "etc-passwd-"),
        ("é", "unnamed-"),
        ("", "unnamed-"),
        ("nul\0escape\x1b[2Jline\nbreak", "nul-escape-2Jline-break-"),
    ],
)
def test_no_name_leads_out_of_the_folder(name: str, folder: str) -> None:
    assert slug(name).startswith(folder)
    assert len(slug(name)) == len(folder) + 8 * folder.endswith("-")
    assert len(Path(slug(name)).parts) == 1


def test_no_two_names_share_a_folder_and_none_is_too_long_for_one(tmp_path: Path) -> None:
    names = ["a b", "a-b", "a/b", "<a-b>", "n" * 300, "n" * 299, "n" * 160]
    folders = {slug(name) for name in names}
    assert len(folders) == len(names)
    for folder in folders:
        (tmp_path / f".{folder}.json.xz.12345678.part").write_text("")


# -- whole or absent --------------------------------------------------------------------------------------------


def _crash_at(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Make the ``count``-th rename fail, as the end of the process in that moment would."""
    renames = []
    rename = Path.replace

    def replace(self: Path, target: Path) -> Path:
        renames.append(target)
        if len(renames) == count:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", replace)


@pytest.mark.parametrize("count", [1, 2])
def test_a_crash_while_a_shard_is_written_leaves_it_absent(
    results: Results, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    _crash_at(monkeypatch, count)
    with pytest.raises(KeyboardInterrupt):
        one_shard(results)
    assert results.store.shard(DEFENSE.name, "pgd", 0) is None
    assert one_shard(results).status == "ok"  # and the next attempt succeeds
    assert not list(results.root.rglob("*.part"))


@pytest.mark.parametrize("count", [1, 2])
def test_a_crash_while_a_shard_is_replaced_never_mixes_old_and_new(
    results: Results, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    before = one_shard(results)
    _crash_at(monkeypatch, count)
    with pytest.raises(KeyboardInterrupt):
        one_shard(results)
    stored = results.store.shard(DEFENSE.name, "pgd", 0)
    assert stored == before
    if count == 1:
        assert results.store.x_adv(before).shape == (2, 1, 2, 2)
    else:  # the images are already the new ones: the record says that they are not its own
        with pytest.raises(InputError, match="SHA-256"):
            results.store.x_adv(before)


def test_a_half_written_file_of_a_killed_process_is_not_taken_for_a_result(results: Results) -> None:
    path = results.store.shard_path(DEFENSE.name, "pgd", 0)
    path.parent.mkdir(parents=True)
    (path.parent / f".{path.name}.abc.part").write_text('{"schema_version": 1, ')
    assert results.store.shard(DEFENSE.name, "pgd", 0) is None
    assert list(results.store.defenses()) == []


def test_an_error_while_writing_leaves_the_old_file_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left") as raised:
        write_atomically(path, b"new")
    assert raised.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


# -- shards of a cell in one file -------------------------------------------------------------------------------


def _three(results: Results) -> tuple[list[ShardRecord], Path]:
    shards = [one_shard(results, number) for number in range(3)]
    return shards, results.store.shard_path(DEFENSE.name, "pgd", 0).with_name(JOINED)


def test_joined_shards_come_back_as_they_were(results: Results) -> None:
    shards, path = _three(results)
    results.store.join(DEFENSE.name, "pgd")
    assert [results.store.shard(DEFENSE.name, "pgd", number) for number in range(4)] == [*shards, None]
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "000.safetensors", "001.safetensors", "002.safetensors", JOINED,
    ]  # fmt: skip
    assert all(results.store.x_adv(shard).shape == (2, 1, 2, 2) for shard in shards)
    before = path.read_bytes()
    results.store.join(DEFENSE.name, "pgd")
    assert path.read_bytes() == before
    without = [file.read(rows=False) for file in results.store.shards(DEFENSE.name, "pgd").values()]
    assert without == [shard.model_copy(update={"rows": []}) for shard in shards]


@pytest.mark.parametrize("content", ["", "3", "{", '{"shard": 2}'])
def test_a_damaged_file_is_not_joined_with_the_others(results: Results, content: str) -> None:
    shards, path = _three(results)
    damaged = path.with_name("001.json")
    damaged.write_text(content)
    results.store.join(DEFENSE.name, "pgd")
    files = results.store.shards(DEFENSE.name, "pgd")
    assert damaged.read_text() == content and files[1].path == damaged
    assert [files[number].read() for number in (0, 2)] == [shards[0], shards[2]]


def test_a_shard_that_is_run_again_stands_before_the_joined_one(results: Results) -> None:
    shards, path = _three(results)
    results.store.join(DEFENSE.name, "pgd")
    again = one_shard(results, 1)
    assert again != shards[1]
    expected = [shards[0], again, shards[2]]
    assert [file.read() for file in results.store.shards(DEFENSE.name, "pgd").values()] == expected
    results.store.join(DEFENSE.name, "pgd")
    assert [file.read() for file in results.store.shards(DEFENSE.name, "pgd").values()] == expected
    assert [file.name for file in path.parent.glob("*.json*")] == [JOINED]


def test_a_joined_shard_is_removed_with_the_one_that_stands_before_it(results: Results) -> None:
    shards, path = _three(results)
    results.store.join(DEFENSE.name, "pgd")
    one_shard(results, 1)
    results.store.remove_shard(DEFENSE.name, "pgd", 1)
    assert [file.read() for file in results.store.shards(DEFENSE.name, "pgd").values()] == [shards[0], shards[2]]
    results.store.remove_shard(DEFENSE.name, "pgd", 0)
    results.store.remove_shard(DEFENSE.name, "pgd", 2)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("count", [1, 2])
def test_a_crash_while_shards_are_joined_loses_none(
    results: Results, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    shards, _ = _three(results)
    results.store.join(DEFENSE.name, "pgd")
    shards[1] = one_shard(results, 1)
    if count == 1:
        _crash_at(monkeypatch, 1)
    else:  # after the joined file, before the others are gone

        def crash(self: Path) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(Path, "unlink", crash)
    with pytest.raises(KeyboardInterrupt):
        results.store.join(DEFENSE.name, "pgd")
    assert [file.read() for file in results.store.shards(DEFENSE.name, "pgd").values()] == shards


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", lzma.compress(b"{"), lzma.compress(b"3"), lzma.compress(b"[3]"), lzma.compress(b'[{"shard": "0"}]'),
     lzma.compress(b'[{"shard": 0}, {"shard": 0}]'), lzma.compress(b'[{"shard": 0}]')[:-9]],
)  # fmt: skip
def test_what_are_no_joined_shards_is_said_in_one_line_and_takes_no_other_shard_away(
    results: Results, content: bytes
) -> None:
    shard, (_, path) = one_shard(results, 0), _three(results)
    path.write_bytes(content)
    for number in (1, 2):
        path.with_name(f"{number:03d}.json").unlink()
    files = results.store.shards(DEFENSE.name, "pgd")
    assert list(files) == [-1, 0] and not files[0].is_joined
    with pytest.raises(InputError, match=rf"{re.escape(JOINED)}: cannot be read: ") as caught:
        files[-1].read()
    assert len(str(caught.value).splitlines()) == 1
    results.store.remove_shard(DEFENSE.name, "pgd", -1)
    assert list(results.store.shards(DEFENSE.name, "pgd")) == [0] and not path.exists() and shard.status == "ok"


def test_a_joined_shard_of_a_newer_schema_is_refused_by_its_number(results: Results) -> None:
    _three(results)
    _change(results.store.shard_path(DEFENSE.name, "pgd", 1), schema_version=SCHEMA_VERSION + 1)
    results.store.join(DEFENSE.name, "pgd")
    files = results.store.shards(DEFENSE.name, "pgd")
    assert [files[number].read().shard for number in (0, 2)] == [0, 2]
    with pytest.raises(NewerSchemaError, match=rf"{re.escape(JOINED)}: shard 1: schema version"):
        files[1].read()


# -- reading what is wrong --------------------------------------------------------------------------------------


def _change(path: Path, **fields: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_a_newer_schema_is_refused_with_one_line(results: Results) -> None:
    results.write_suite()
    results.store.write_defense(DEFENSE)
    one_shard(results)
    paths: dict[Path, type] = {
        results.store.folder / "suite.json": SuiteRecord,
        results.store.defense_folder(DEFENSE.name) / "defense.json": DefenseRecord,
        results.store.shard_path(DEFENSE.name, "pgd", 0): ShardRecord,
    }
    for path, kind in paths.items():
        _change(path, schema_version=SCHEMA_VERSION + 1, something_new=True)
        with pytest.raises(InputError) as caught:
            read_record(path, kind)
        assert f"schema version {SCHEMA_VERSION + 1} is newer than {SCHEMA_VERSION}" in str(caught.value)
        assert str(path) in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1


def test_unknown_and_missing_fields_are_refused_by_name(results: Results) -> None:
    results.write_suite()
    path = results.store.folder / "suite.json"
    _change(path, epsilon=0.1)
    with pytest.raises(InputError, match=r"suite\.json: epsilon: Extra inputs are not permitted"):
        results.store.suite()
    raw = json.loads(path.read_text())
    del raw["epsilon"], raw["eps"]
    path.write_text(json.dumps(raw))
    with pytest.raises(InputError, match=r"suite\.json: eps: Field required"):
        results.store.suite()


def test_unknown_columns_and_short_rows_are_refused(results: Results) -> None:
    one_shard(results)
    path = results.store.shard_path(DEFENSE.name, "pgd", 0)
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({**raw, "columns": ["ident", *raw["columns"][1:]]}))
    with pytest.raises(InputError, match=r"rows\.0\.id: Field required"):
        read_record(path, ShardRecord)
    path.write_text(json.dumps({**raw, "columns": raw["columns"][:-1]}))
    with pytest.raises(InputError, match=r"rows: a row has not the 19 values"):
        read_record(path, ShardRecord)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"name": "x"}', '{"schema_version": "1"}'])
def test_what_is_no_record_is_refused_with_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "suite.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"suite\.json: ") as caught:
        read_record(path, SuiteRecord)
    assert len(str(caught.value).splitlines()) == 1


def test_images_that_have_changed_since_are_refused(results: Results) -> None:
    stored = one_shard(results)
    path = results.store.shard_path(DEFENSE.name, "pgd", 0).with_suffix(".safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=f"the record says {stored.x_adv_sha256}"):
        results.store.x_adv(stored)


# -- folders that cannot be written -----------------------------------------------------------------------------


def test_a_file_is_no_results_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="file is not a folder"):
            check_writable(folder)


def test_a_folder_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)  # the superuser may write anywhere
    with pytest.raises(InputError, match=r"is not writable \(Permission denied\)"):
        check_writable(tmp_path / "new" / "results")


def test_checking_creates_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "results")
    assert list(tmp_path.iterdir()) == []
