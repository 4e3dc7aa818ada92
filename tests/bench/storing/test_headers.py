"""A plan opens the shards that changed since it last looked; what is noted of them never changes what it finds."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from written_results import Results, attack_record, defense_record, row, suite_record

from bench.contracts.errors import NewerSchemaError
from bench.storing import headers, reading
from bench.storing.current import cell_state
from bench.storing.headers import Header, Headers
from bench.storing.joined import JOINED

PGD = attack_record("pgd")
PLAIN = defense_record("plain")
Opened = list[str]


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """Three shards, the second with adversarial inputs, all older than a tick of any clock."""
    made = Results(tmp_path, suite_record([PGD], n=6))
    made.write_defense(PLAIN, {"pgd": [1] * 6})
    rows = [row("e2", 1), row("e3", 1)]
    made.write_shard(PLAIN, "pgd", 1, rows=rows, x_adv=torch.full((2, 1, 2, 2), 0.5))
    return made


@pytest.fixture(autouse=True)
def no_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of these tests are milliseconds old; ticks have tests of their own."""
    monkeypatch.setattr(headers, "_TICK", 0)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    """The names of the records that are read."""
    names: Opened = []
    for name in ("read_record", "joined"):
        read = getattr(reading, name)

        def watched(path: Path, *args: object, read: Callable[..., object] = read) -> object:
            names.append(path.name)
            return read(path, *args)

        monkeypatch.setattr(reading, name, watched)
    return names


def look(results: Results) -> dict[int, Header | str]:
    return dict(Headers(results.store, results.suite).read("plain", "pgd"))


def note(results: Results) -> Path:
    time.sleep(0.02)  # of one clock tick or more
    looked = Headers(results.store, results.suite)
    list(looked.read("plain", "pgd"))
    looked.write()
    return results.store.headers_path("plain", "pgd")


def test_what_has_not_changed_is_not_opened_again(results: Results, opened: Opened) -> None:
    read = look(results)
    assert opened == ["000.json", "001.json", "002.json"] and all(isinstance(h, Header) for h in read.values())
    note(results)
    opened.clear()
    assert look(results) == read and opened == []
    state = cell_state(Headers(results.store, results.suite), PLAIN, PGD, torch="2.15", device="cpu")
    assert list(state.settled) == [0, 1, 2] and opened == []


def test_a_noted_header_has_the_key_of_its_shard(results: Results) -> None:
    note(results)
    for number, header in look(results).items():
        shard = results.store.shard("plain", "pgd", number)
        assert shard is not None and isinstance(header, Header)
        assert (header.key, header.start, header.stop) == (shard.key, shard.start, shard.stop)


def test_what_it_would_be_made_of_now_is_asked_anew(results: Results) -> None:
    note(results)
    state = cell_state(Headers(results.store, results.suite), PLAIN, PGD, torch="2.16", device="cpu")
    assert state.stale == {number: ["torch: was 2.15, is 2.16"] for number in range(3)}
    moved = results.suite.model_copy(update={"digests": ["another", *results.suite.digests[1:]]})
    state = cell_state(Headers(results.store, moved), PLAIN, PGD, torch="2.15", device="cpu")
    assert list(state.settled) == [1, 2] and state.stale[0][0].startswith("the examples themselves: was ")


def _cut(path: Path) -> None:
    path.write_text(path.read_text()[:-40])


def _restored_times(path: Path) -> None:
    """Other content of the same length, with the times of the old one."""
    about = path.stat()
    path.write_text(path.read_text().replace('"ok"', '"no"'))
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


@pytest.mark.parametrize("change", [_cut, _restored_times, Path.unlink])
def test_a_shard_that_was_changed_is_read(results: Results, opened: Opened, change: Callable[[Path], None]) -> None:
    note(results)
    opened.clear()
    change(results.store.shard_path("plain", "pgd", 2))
    found = look(results)
    without_notes = dict(Headers(results.store, results.suite).read("plain", "pgd"))
    results.store.headers_path("plain", "pgd").unlink()
    assert found == without_notes == look(results)
    assert 2 not in found or isinstance(found[2], str)
    assert set(opened) <= {"000.json", "001.json", "002.json"}


def test_joined_shards_are_opened_once(results: Results, opened: Opened) -> None:
    apart = look(results)
    results.store.join("plain", "pgd")
    opened.clear()
    note(results)
    assert look(results) == apart and {*opened} == {JOINED}
    opened.clear()
    assert look(results) == apart and opened == []
    results.write_shard(PLAIN, "pgd", 1, status="timeout", error="stopped after 3 s")
    assert [isinstance(one, Header) and one.problem for one in look(results).values()] == [
        "", "timeout: stopped after 3 s", "",
    ]  # fmt: skip
    assert opened == ["001.json"]
    results.store.remove_shard("plain", "pgd", 2)
    assert list(look(results)) == [0, 1]


def test_joined_shards_that_were_changed_are_read(results: Results) -> None:
    results.store.join("plain", "pgd")
    note(results)
    path = results.store.shard_path("plain", "pgd", 0).with_name(JOINED)
    path.write_bytes(path.read_bytes()[:-9])
    (said,) = look(results).values()
    assert isinstance(said, str) and f"{JOINED}: cannot be read" in said


def test_adversarial_inputs_that_were_cut_off_or_removed_are_noticed(results: Results) -> None:
    note(results)
    images = results.store.shard_path("plain", "pgd", 1).with_suffix(".safetensors")
    images.write_bytes(images.read_bytes()[:-3])
    cut = look(results)[1]
    assert isinstance(cut, Header) and cut.problem.endswith("is cut off or no such file")
    images.unlink()
    gone = look(results)[1]
    assert isinstance(gone, Header) and gone.problem.endswith("is missing")


def test_a_shard_that_has_to_be_run_again_is_read_every_time(results: Results, opened: Opened) -> None:
    results.write_shard(PLAIN, "pgd", 1, status="timeout", error="stopped after 3 s")
    note(results)
    opened.clear()
    timed_out = look(results)[1]
    assert isinstance(timed_out, Header) and timed_out.problem == "timeout: stopped after 3 s"
    assert opened == ["001.json"]


def test_a_newer_file_is_refused_with_and_without_a_note(results: Results) -> None:
    note(results)
    path = results.store.shard_path("plain", "pgd", 0)
    path.write_text(path.read_text().replace('"schema_version": ', '"schema_version": 9'))
    with pytest.raises(NewerSchemaError):
        look(results)


def _damaged(data: bytes) -> Iterator[bytes]:
    chance = random.Random(0)
    yield from (b"", b"\n", data[: len(data) // 2], data[:-1], b"\x80" + data, data + b" ")
    for _ in range(200):
        place = chance.randrange(len(data))
        yield data[:place] + bytes([data[place] ^ (1 << chance.randrange(8))]) + data[place + 1 :]


def test_a_damaged_note_counts_for_nothing(results: Results, opened: Opened) -> None:
    path = note(results)
    whole, read = path.read_bytes(), look(results)
    for data in _damaged(whole):
        path.write_bytes(data)
        opened.clear()
        assert look(results) == read and len(opened) == 3
    path.unlink()
    path.mkdir()
    assert look(results) == read


def test_a_note_of_records_with_other_fields_counts_for_nothing(
    results: Results, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    note(results)
    opened.clear()
    monkeypatch.setattr(headers, "_meaning", lambda: "another")
    look(results)
    assert len(opened) == 3


def test_a_note_counts_for_no_other_folder(results: Results, opened: Opened, tmp_path: Path) -> None:
    """One that came along with a copy of the results, or was put there by whoever made them."""
    path = note(results)
    copy = Results(tmp_path / "copy", results.suite)
    copy.write_defense(PLAIN, {"pgd": [0] * 6})
    for number in range(3):
        ours, theirs = (one.store.shard_path("plain", "pgd", number).stat() for one in (results, copy))
        os.utime(copy.store.shard_path("plain", "pgd", number), ns=(ours.st_atime_ns, ours.st_mtime_ns))
        assert number == 1 or ours.st_size == theirs.st_size
    noted = copy.store.headers_path("plain", "pgd")
    noted.parent.mkdir(parents=True)
    noted.write_bytes(path.read_bytes())
    opened.clear()
    look(copy)
    assert len(opened) == 3


def test_what_changed_within_a_tick_of_the_look_is_read_again(
    results: Results, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(headers, "_TICK", 2_000_000_000)
    path = note(results)
    opened.clear()
    look(results)
    assert len(opened) == 3  # written a moment before the note
    now = time.time_ns()
    os.utime(path, ns=(now, now + 10_000_000_000))  # as if the note were ten seconds younger
    opened.clear()
    look(results)
    assert opened == []


def test_a_note_written_long_after_the_look_speaks_of_the_look(
    results: Results, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = Headers(results.store, results.suite)
    time.sleep(0.02)
    list(looked.read("plain", "pgd"))
    ticking = time.monotonic_ns
    monkeypatch.setattr(time, "monotonic_ns", lambda: ticking() + 60_000_000_000)  # workers took a minute to start
    looked.write()
    opened.clear()
    look(results)
    assert len(opened) == 3  # the shards are not a minute older than the look


def test_a_clock_that_was_set_back_makes_no_header_count(results: Results, opened: Opened) -> None:
    """Shards of the clock before, a note of the clock after: which was first, times do not tell."""
    path = note(results)
    hour = 3600 * 1_000_000_000
    os.utime(path, ns=(time.time_ns() - hour, time.time_ns() - hour))
    opened.clear()
    look(results)
    assert len(opened) == 3


def test_two_that_look_at_once_write_whole_notes(results: Results, opened: Opened) -> None:
    one, other = Headers(results.store, results.suite), Headers(results.store, results.suite)
    time.sleep(0.02)
    list(one.read("plain", "pgd"))
    results.write_shard(PLAIN, "pgd", 2, rows=[row("e4", 0), row("e5", 0)])
    list(other.read("plain", "pgd"))
    other.write()
    one.write()  # the older look last
    opened.clear()
    assert all(isinstance(header, Header) for header in look(results).values())
    assert "002.json" in opened


def test_where_nothing_can_be_written_nothing_is_noted_and_nobody_complains(
    results: Results, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(headers, "write_atomically", refused)
    note(results)
    assert not results.store.headers_path("plain", "pgd").exists()
    opened.clear()
    assert len(look(results)) == len(opened) == 3


def test_removed_shards_leave_the_note(results: Results) -> None:
    path = note(results)
    before = len(path.read_bytes())
    results.store.remove_shard("plain", "pgd", 1)
    assert list(look(results)) == [0, 2]
    note(results)
    assert len(path.read_bytes()) < before
