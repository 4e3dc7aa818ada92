"""Where a site may be written, and what is left when it cannot be."""

from __future__ import annotations

import os
import threading
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from synthetic_site import defense, suite

import leaderboard.site
from bench.contracts.errors import InputError
from bench.summary import summarise as summarising
from bench.summary.numbers import SuiteSummary
from leaderboard import build, render, serve
from leaderboard.gallery import amplification, to_pixels
from leaderboard.server import server


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refuses(call, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_the_same_summaries_give_the_same_bytes(digits: SuiteSummary, results: Path, tmp_path: Path) -> None:
    first = render([digits], results, tmp_path / "a").parent
    second = render([digits], results, tmp_path / "b").parent
    assert tree(first) == tree(second)


def test_a_rebuilt_site_keeps_nothing_of_the_old_one(digits: SuiteSummary, tmp_path: Path) -> None:
    out = tmp_path / "site"
    render([digits], tmp_path, out)
    one = suite("digits", digits.defenses[:1])
    assert render([one], tmp_path, out) == out / "index.html"
    assert (out / "digits/defenses/madry.html").exists()
    assert not (out / "digits/defenses/ours.html").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


def test_an_empty_folder_may_become_a_site(digits: SuiteSummary, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    assert render([digits], tmp_path, tmp_path / "site").is_file()


def test_a_folder_that_is_no_site_is_left_alone(digits: SuiteSummary, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    refuses(lambda: render([digits], tmp_path, tmp_path / "thesis"), "thesis", "not a site")
    assert tree(tmp_path) == {"thesis/chapter.tex": b"years of work"}


def test_a_file_is_no_folder(digits: SuiteSummary, tmp_path: Path) -> None:
    (tmp_path / "site").write_text("")
    refuses(lambda: render([digits], tmp_path, tmp_path / "site"), "site", "not a folder")
    refuses(lambda: render([digits], tmp_path, tmp_path / "site" / "deeper"), "deeper", "cannot be written")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_permission_is_refused(digits: SuiteSummary, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    refuses(lambda: render([digits], tmp_path, tmp_path / "locked" / "site"), "cannot be written")


def test_an_interrupted_build_leaves_the_old_site(
    digits: SuiteSummary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "site"
    render([digits], tmp_path, out)
    before = tree(out)

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(leaderboard.site, "write_gallery", interrupt)
    with pytest.raises(KeyboardInterrupt):
        render([suite("digits", [defense("other", 1, 9, 8, [8] * 9)])], tmp_path, out)
    assert tree(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


def test_no_results_is_an_error_and_writes_nothing(tmp_path: Path) -> None:
    refuses(lambda: build(tmp_path / "results", tmp_path / "site"), "results", "no results in")
    refuses(lambda: render([suite("digits", [])], tmp_path / "results", tmp_path / "site"), "holds no results")
    assert not list(tmp_path.iterdir())


def test_build_summarises_every_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def summarise(results: Path, name: str) -> SuiteSummary:
        asked.append((results, name))
        return suite(name, [defense("none", 1, 9, 8, [8] * 9)])

    monkeypatch.setattr(summarising, "summarise", summarise)
    for name in ("b", "a"):
        (tmp_path / "results" / name).mkdir(parents=True)
        (tmp_path / "results" / name / "suite.json").write_text("{}")
    (tmp_path / "results" / "no-suite").mkdir()
    assert build(tmp_path / "results", tmp_path / "site").is_file()
    assert asked == [(tmp_path / "results", "a"), (tmp_path / "results", "b")]
    assert (tmp_path / "site" / "b" / "index.html").is_file()


def test_the_site_is_served_on_the_loopback_address(site: Path) -> None:
    with server(site, 0) as running:
        host, port = running.server_address[:2]
        assert host == "127.0.0.1"
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as reply:
                assert reply.read() == (site / "index.html").read_bytes()
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/..%2Fresults")
            refuses(lambda: serve(site, int(port)), str(port), "cannot be used")
        finally:
            running.shutdown()
            thread.join()


def test_serving_needs_a_site_and_a_port(site: Path, tmp_path: Path) -> None:
    refuses(lambda: serve(tmp_path), "holds no site")
    refuses(lambda: serve(site, 70000), "70000")


def test_pixels_outside_the_box_are_clipped() -> None:
    image = np.array([[[-0.5, 0.0], [1.0, 2.0]]], dtype=np.float32)
    assert to_pixels(image).tolist() == [[0, 0], [255, 255]]
    assert to_pixels(np.full((3, 2, 4), np.nan, dtype=np.float32)).shape == (2, 4, 3)
    assert to_pixels(np.zeros((2, 5, 6), dtype=np.float32)).shape == (5, 6)


@pytest.mark.parametrize(("largest", "factor"), [(0.5, 1.0), (1 / 32, 16.0), (0.03, 16.0), (1.0, 0.5), (0.0, 1.0)])
def test_the_perturbation_is_amplified_as_far_as_it_stays_visible(largest, factor) -> None:
    assert amplification(np.array([-largest, largest / 2], dtype=np.float32)) == pytest.approx(factor)
