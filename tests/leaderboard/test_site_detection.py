"""The plots of a detector's page and the numbers beside them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from html_page import Page
from sklearn.metrics import auc
from synthetic_site import tier

from bench.summary.numbers import DetectionSummary, SuiteSummary
from bench.summary.ranking import Scores
from leaderboard.detection import BINS, curves, histograms
from leaderboard.site import render


@pytest.fixture
def detection(digits: SuiteSummary) -> DetectionSummary:
    found = digits.defenses[2].detection
    assert found is not None
    return found


def test_a_curve_keeps_its_area_without_the_corners_on_straight_lines(detection: DetectionSummary) -> None:
    generator = np.random.default_rng(0)
    scores = Scores(
        generator.normal(size=300), generator.normal(1, 1, 200), np.arange(200, dtype=np.int64), np.ones(200)
    )
    one = replace(tier("adaptive", 113, 0.76), scores=scores)
    (curve,) = curves(replace(detection, tiers={"adaptive": one}))
    assert len(curve.corners) < len(scores.curve()) / 2
    assert (curve.corners[0], curve.corners[-1]) == ((0, 0), (1, 1))
    false, true = np.array(curve.corners).T
    assert auc(false, true) == pytest.approx(scores.area())
    assert curve.at_threshold == (9 / 200, 113 / 200)


def test_every_score_is_in_a_bin_or_said_to_be_in_none(detection: DetectionSummary) -> None:
    clean = [*np.linspace(0, 1, 97), -math.inf, -math.inf, 5.0]
    found = histograms(replace(detection, clean_scores=clean))
    assert found is not None
    one = found.series[0]
    assert (one.name, one.n, one.without, len(one.shares)) == ("clean", 100, 2, BINS)
    assert sum(one.shares) == pytest.approx(0.98)
    assert one.quantiles[1] == pytest.approx(np.median([*clean[:97], 5.0]), abs=0.02)
    assert one.rejected == pytest.approx(np.mean(np.array(clean) > detection.threshold))
    assert not found.logarithmic


def test_the_bins_stand_where_the_scores_are(detection: DetectionSummary) -> None:
    plain = histograms(replace(detection, clean_scores=[0.0] * 10 + [1.0] * 30, noise_scores=[], tiers={}))
    assert plain is not None
    assert [(i, share) for i, share in enumerate(plain.series[0].shares) if share] == [(0, 0.25), (BINS - 1, 0.75)]
    assert plain.place(detection.threshold) == pytest.approx(detection.threshold)
    wide = histograms(replace(detection, clean_scores=[1e-4] * 30 + [1.0] * 10, noise_scores=[], tiers={}))
    assert wide is not None and wide.logarithmic
    assert wide.place(1e-2) == pytest.approx(0.5)


def test_equal_scores_and_none_at_all_break_no_axis(detection: DetectionSummary) -> None:
    same = [detection.threshold] * 3
    found = histograms(replace(detection, clean_scores=same, noise_scores=[], tiers={}))
    assert found is not None and sum(found.series[0].shares) == pytest.approx(1)
    assert histograms(replace(detection, clean_scores=[math.nan], noise_scores=[], tiers={})) is None


def test_the_page_has_the_tiers_their_curves_and_the_histograms(tmp_path: Path, digits: SuiteSummary) -> None:
    render([digits], tmp_path, tmp_path / "site")
    page = Page(tmp_path / "site/digits/defenses/feature-squeezing.html")
    labels = [attributes.get("aria-label") or "" for attributes in page.elements("svg")]
    assert sum("ROC curves" in label for label in labels) == 1
    assert sum("Histograms" in label for label in labels) == 1
    assert len([tag for tag, _ in page.tags if tag == "polyline"]) >= 2  # a curve for each tier
    bins = [a for a in page.elements("rect") if (a.get("class") or "").startswith("bin ")]
    assert {(a.get("class") or "").split()[1] for a in bins} == {"clean", "s3", "s0", "s1"}
    text = page.text.replace("\N{NO-BREAK SPACE}", " ")
    for words in ("oblivious", "adaptive", "90.2 %", "81.2 % [75.0, 87.5]", "noise rejected", "madry, has 71.2 %"):
        assert words in text
    rows = json.loads((tmp_path / "site/digits/detection/feature-squeezing.json").read_text())
    assert [(row["tier"], row["auroc"], row["auroc_low"]) for row in rows] == [
        ("oblivious", 0.8125, 0.75),
        ("adaptive", 0.8125, 0.75),
    ]
    assert "ROC" not in Page(tmp_path / "site/digits/defenses/madry.html").text
