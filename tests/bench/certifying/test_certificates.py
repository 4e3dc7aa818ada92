"""What is stored of certificates: what needs no work again, what they come to, and what contradicts them."""

from __future__ import annotations

from bench.storing.certified import Certificates, CertifiedRow, write_certificates
from bench.storing.keys import DataKey, DefenseKey
from bench.storing.provenance import finish, start
from bench.storing.reading import read_record
from bench.storing.store import Store
from bench.summary.certified import beside, contradictions


def _row(example: str, status: str, limit: float = 5.0) -> CertifiedRow:
    return CertifiedRow(id=example, status=status, method="optimised", bound=0.5, parts=0, seconds=1.0, limit=limit)


def _record(eps: float, *rows: CertifiedRow) -> Certificates:
    return Certificates(
        defense=DefenseKey(name="madry", version=1, params={}, weights="0", libraries={}),
        data=DataKey(version=1, split="test", examples="0"), norm="linf", eps=eps, low=0.0, high=1.0, tolerance=1e-3,
        precision=1e-6, attack="cascade", provenance=finish(start("test")), rows=list(rows),
    )  # fmt: skip


def test_they_come_to_an_interval_which_may_be_exact() -> None:
    record = _record(0.1, _row("a", "certified"), _row("b", "open"), _row("c", "broken"), _row("d", "open"))
    one = beside(record, {"d"})
    assert (one.certified, one.unbroken, one.n, one.exact, one.contradicted) == (0.25, 0.5, 4, False, ())
    assert one.text == "25.0 to 50.0"
    assert beside(record, {"b", "d"}).text == "25.0 (exact)"


def test_an_interval_is_exact_whatever_the_number_of_examples() -> None:
    rows = [_row(str(i), "certified" if i == 0 else "broken") for i in range(6)]
    assert beside(_record(0.1, *rows), set()).text == "16.7 (exact)"  # 1 - 5/6 is 0.16666666666666663


def test_a_certified_example_that_is_broken_is_named() -> None:
    found = beside(_record(0.1, _row("a", "certified"), _row("b", "certified")), {"b", "elsewhere"})
    assert contradictions([found], "linf") == [
        "b is certified at linf 0.1 and yet broken by a stored attack; one of the two is wrong"
    ]


def test_what_is_settled_needs_no_work_and_what_is_open_only_with_more_time() -> None:
    from bench.certifying.measure import settled

    small = _record(0.05, _row("a", "broken"), _row("b", "open"))
    here = _record(0.1, _row("c", "open", limit=5.0), _row("d", "certified"))
    large = _record(0.2, _row("e", "certified"), _row("f", "broken"))
    rows = settled(list("abcdefg"), [small, here, large], {"g"}, 0.1, 5.0)
    statuses = {example: row.status for example, row in rows.items()}
    expected = {"a": "broken", "c": "open", "d": "certified", "e": "certified", "g": "broken"}
    assert statuses == expected
    assert "c" not in settled(list("abcdefg"), [here], set(), 0.1, 6.0)


def test_a_record_is_read_as_it_was_written(tmp_path) -> None:
    store, record = Store(tmp_path, "suite"), _record(0.05, _row("a", "certified"), _row("b", "open"))
    path = write_certificates(store, record)
    assert path.name == "linf-0.05.json"
    assert read_record(path, Certificates) == record
