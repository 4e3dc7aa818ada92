"""What is settled, what is stale and why, and how what is missing is cut."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from written_results import Results, attack_record, defense_record, suite_record

from bench.contracts.errors import NewerSchemaError
from bench.storing.current import CellState, Piece, cell_state
from bench.storing.headers import Headers
from bench.storing.joined import JOINED, join

PGD = attack_record("pgd")
PLAIN = defense_record("plain")


@pytest.fixture
def results(tmp_path: Path) -> Results:
    made = Results(tmp_path, suite_record([PGD], n=6))
    made.write_defense(PLAIN, {"pgd": [1] * 6})
    return made


def state(results: Results, shard_torch: str = "2.15") -> CellState:
    headers = Headers(results.store, results.suite)
    return cell_state(headers, PLAIN, PGD, torch=shard_torch, device="cpu")


def settled(*ranges: tuple[int, int, int]) -> CellState:
    return CellState({number: range(start, stop) for number, start, stop in ranges})


def test_what_is_stored_is_settled(results: Results) -> None:
    found = state(results)
    assert (found.settled, found.stale) == ({0: range(2), 1: range(2, 4), 2: range(4, 6)}, {})
    assert found.missing(6, 2) == []


def test_a_file_that_is_damaged_failed_or_of_another_torch_is_stale_and_says_why(results: Results) -> None:
    results.store.shard_path("plain", "pgd", 0).write_text("{")
    results.write_shard(PLAIN, "pgd", 1, status="timeout", error="Traceback\nstopped after 3 s")
    assert state(results).missing(6, 2) == [Piece(0, 0, 2), Piece(1, 2, 4)]
    assert "cannot be read" in state(results).stale[0][0]
    assert state(results).stale[1] == ["timeout: stopped after 3 s"]
    assert state(results, "2.16").stale[2] == ["torch: was 2.15, is 2.16"]


def test_a_shard_cut_off_inside_its_rows_is_stale_though_its_header_is_whole(results: Results) -> None:
    cut, short, packed = (results.store.shard_path("plain", "pgd", number) for number in range(3))
    text = cut.read_text()
    cut.write_text(text[: text.index('"rows"') + 60])
    lines = short.read_text().splitlines(keepends=True)
    start = lines.index(' "rows": [\n')
    short.write_text("".join([*lines[: start + 1], lines[start + 2], *lines[start + 3 :]]))  # JSON, but for one row
    data = join([json.loads(packed.read_bytes())])
    packed.with_name(JOINED).write_bytes(data[: len(data) * 3 // 4])
    packed.unlink()
    found = state(results)
    assert found.missing(6, 2) == [Piece(0, 0, 2), Piece(1, 2, 4), Piece(2, 4, 6)]
    assert "cannot be read" in found.stale[0][0] and "cannot be read" in found.stale[-1][0]
    assert found.stale[1][0].endswith("rows: there are 1, of 2 examples")


def test_a_newer_file_is_not_replaced(results: Results) -> None:
    path = results.store.shard_path("plain", "pgd", 0)
    path.write_text(path.read_text().replace('"schema_version": ', '"schema_version": 9'))
    with pytest.raises(NewerSchemaError):
        state(results)


def test_an_attack_that_does_not_apply_is_settled(results: Results) -> None:
    results.write_shard(PLAIN, "pgd", 1, status="not-applicable", error="no l1 version")
    assert state(results).missing(6, 2) == []


def test_nothing_stored_is_cut_from_the_start() -> None:
    assert CellState().missing(5, 2) == [Piece(0, 0, 2), Piece(1, 2, 4), Piece(2, 4, 5)]


def test_another_shard_size_keeps_what_is_there_and_more_examples_are_added_to_it() -> None:
    whole = settled((0, 0, 2), (1, 2, 4), (2, 4, 6))
    assert whole.missing(6, 5) == []
    assert whole.missing(10, 3) == [Piece(4, 6, 9), Piece(3, 9, 10)]
    # Shard 1 is missing; a new one of three examples would have been number 0, which is taken.
    assert settled((0, 0, 2), (2, 4, 6)).missing(6, 3) == [Piece(3, 2, 3), Piece(1, 3, 4)]


def test_a_shard_longer_than_the_suite_covers_what_there_is() -> None:
    assert settled((0, 0, 9)).missing(4, 2) == []


def test_no_two_pieces_share_a_number_and_together_they_cover_the_rest() -> None:
    for size in range(1, 12):
        kept = settled((0, 1, 3), (3, 5, 6), (1, 8, 9))
        pieces = kept.missing(10, size)
        numbers = [piece.number for piece in pieces]
        assert len(set(numbers)) == len(numbers) and not {0, 1, 3} & set(numbers)
        assert sorted(i for piece in pieces for i in range(piece.start, piece.stop)) == [0, 3, 4, 6, 7, 9]
