"""Inputs that are waveforms: plots in place of images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from html_page import Page
from safetensors.numpy import save_file
from synthetic_site import defense, suite

from bench.storing.store import Store
from leaderboard import render
from leaderboard.waveforms import HEIGHT, STRETCHES, WIDTH, difference, trace


def points(line: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in line.split())]


def test_a_short_waveform_is_drawn_sample_by_sample() -> None:
    wave = trace("x", np.array([[-1, 0, 1, 5, np.nan]], dtype=np.float32), -1, 1)
    assert [y for _, y in points(wave.lines[0])] == [HEIGHT, HEIGHT / 2, 0, 0, HEIGHT]  # clipped; NaN at the bottom
    assert [x for x, _ in points(wave.lines[0])] == [0, WIDTH / 4, WIDTH / 2, 3 * WIDTH / 4, WIDTH]
    assert (wave.samples, wave.zero) == (5, HEIGHT / 2)
    assert trace("x", np.zeros((1, 3), dtype=np.float32), 0.5, 1).zero is None


def test_a_long_waveform_keeps_its_peaks() -> None:
    waveform = np.zeros((2, 16000), dtype=np.float32)
    waveform[1, 12345] = 1
    flat, spike = (points(line) for line in trace("x", waveform, -1, 1).lines)
    assert len(flat) == len(spike) == 2 * STRETCHES
    assert [y for _, y in flat] == [HEIGHT / 2] * len(flat)
    assert [x for x, y in spike if y == 0] == [pytest.approx(WIDTH * 12345 / 15999, abs=0.05)]
    assert [x for x, _ in spike] == sorted(x for x, _ in spike)


def test_a_difference_is_drawn_on_a_scale_of_its_own() -> None:
    wave = difference("perturbation", np.array([[0.01, -0.02, np.inf]], dtype=np.float32))
    assert (wave.low, wave.high) == (pytest.approx(-0.02), pytest.approx(0.02))
    assert [y for _, y in points(wave.lines[0])] == [HEIGHT / 4, HEIGHT, 0]
    assert difference("perturbation", np.zeros((1, 2), dtype=np.float32)).high == 1


@pytest.fixture
def page(tmp_path: Path) -> Page:
    """The page of a defense of waveforms whose transform makes images of them."""
    item = defense("none", 1, 10, 5, [6] * 9)
    made = suite("waves", [item])
    box = {"shape": (1, 200), "low": -1.0, "high": 1.0, "kind": "waveform", "norm": "l0", "eps": 20.0}
    made = replace(made, record=made.record.model_copy(update=box))
    folder = Store(tmp_path, "waves").defense_folder("none")
    folder.mkdir(parents=True)
    x = np.sin(np.linspace(0, 9, 600, dtype=np.float32)).reshape(3, 1, 200)
    spectrogram = np.zeros((3, 1, 8, 16), dtype=np.float32)
    arrays = {"x": x, "x_adv": x + np.float32(0.03), "g_x": spectrogram, "g_x_adv": spectrogram}
    save_file(arrays, folder / "gallery.safetensors")
    render([made], tmp_path, tmp_path / "site")
    return Page(tmp_path / "site/waves/defenses/none.html")


def test_the_gallery_of_waveforms_is_plots(page: Page) -> None:
    labels = [a.get("aria-label", "") for a in page.elements("svg") if a.get("class") == "wave"]
    assert len(labels) == 3 * 3  # clean, adversarial and their difference
    assert labels[:3] == [f"{what} of example test/0" for what in ("x, clean", "x_adv", "x_adv − x")]
    assert "between ±0.03" in page.text and "values in [-1, 1]" in page.text
    assert sum("points" in a for a in page.elements("polyline")) == 9
    assert len(page.elements("img")) == 3 * 2  # what the transform makes of both


def test_l0_counts_samples_of_a_waveform(page: Page) -> None:
    assert "ℓ0, ε = 20 samples" in page.text and "pixels" not in page.text


def test_a_gallery_of_another_rank_is_said_and_the_page_is_there(tmp_path: Path) -> None:
    folder = Store(tmp_path, "digits").defense_folder("none")
    folder.mkdir(parents=True)
    save_file({key: np.zeros((3, 5), dtype=np.float32) for key in ("x", "x_adv")}, folder / "gallery.safetensors")
    render([suite("digits", [defense("none", 1, 10, 5, [6] * 9)])], tmp_path, tmp_path / "site")
    text = Page(tmp_path / "site/digits/defenses/none.html").text
    assert "No images: gallery.safetensors holds" in text and "waveforms (N, C, T)" in text
