"""The pages as files: complete, linked, escaped, and loading nothing from elsewhere."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from html_page import Page
from PIL import Image
from synthetic_site import ATTACKS, N, attack_record, cell, defense, estimate, study_suite, suite

from bench.storing.records import ClaimRecord
from bench.summary.numbers import Flag, SuiteSummary
from leaderboard import render
from leaderboard.formatting import percent, with_interval

HOSTILE = "<script>alert('x')</script>\"'&../../evil"


def plain(text: str) -> str:
    return " ".join(text.split())


def pages(site: Path) -> list[Page]:
    found = [Page(path) for path in sorted(site.rglob("*.html"))]
    assert found
    return found


def test_every_suite_defense_and_attack_has_a_page(site: Path, digits: SuiteSummary) -> None:
    expected = {"index.html", "digits-l2/index.html", "digits-l2/defenses/madry.html"}
    expected |= {f"digits/defenses/{d.slug}.html" for d in digits.defenses}
    expected |= {f"{name}/attacks/{a.name}.html" for name in ("digits", "digits-l2") for a in ATTACKS}
    assert {path.relative_to(site).as_posix() for path in site.rglob("*.html")} == expected


def test_links_lead_to_files_and_anchors_that_exist(site: Path) -> None:
    for page in pages(site):
        for link in page.links + page.resources:
            parts = urlsplit(link)
            if parts.scheme in ("http", "https", "data"):
                continue
            target = (page.path.parent / parts.path).resolve() if parts.path else page.path
            assert target.is_file(), f"{page.path}: {link}"
            assert target.is_relative_to(site.resolve())
            if parts.fragment:
                ids = {attributes.get("id") for _, attributes in Page(target).tags}
                assert parts.fragment in ids, f"{page.path}: {link}"


def test_nothing_is_loaded_from_another_host(site: Path) -> None:
    for page in pages(site):
        for resource in page.resources:
            assert urlsplit(resource).scheme in ("", "data"), f"{page.path}: {resource}"
    for asset in (site / "assets").iterdir():
        assert not re.search(r"https?://|@import|url\(", asset.read_text(encoding="utf-8")), asset


def test_the_index_shows_every_number(site: Path, digits: SuiteSummary) -> None:
    text = Page(site / "index.html").text
    for item in digits.defenses:
        assert plain(with_interval(item.standard)) in text
        assert plain(with_interval(item.worst_case)) in text
        for one in item.attacks:
            if one.robust:
                assert f"{100 * one.robust.value:.1f}" in text
    for value in ("14.2×", "4.0×", "8.5 min", "60.5 s", "76.0 %", "5=", "+64.5"):
        assert value in text, value
    for word in ("digits, test split", "ℓ∞, ε = 8/255", "upper bound on robustness", "2026-03-01", "0123456789+"):
        assert word in text, word


def test_failed_partial_and_missing_cells_are_visible(site: Path) -> None:
    index = Page(site / "index.html")
    classes = [attributes.get("class", "") for _, attributes in index.tags]
    for status in ("failed", "missing", "not-applicable"):
        assert any(status in name.split() and "empty" in name for name in classes), status
    assert "incomplete: 3 of 9 attacks" in index.text
    lacks = "genattack (partial); hopskipjump (missing); transfer (failed: RuntimeError: out of luck)"
    assert lacks in Page(site / "digits/defenses/jpeg.html").text
    assert index.text.index(f"jpeg: {lacks}") < index.text.index("Ranking")  # said before the numbers


def test_the_worst_cell_of_each_defense_is_emphasised(site: Path, digits: SuiteSummary) -> None:
    cells = Page(site / "index.html").elements("td")
    worst = [attributes["title"] for attributes in cells if "worst" in attributes.get("class", "").split()]
    assert [title.split(":")[0] for title in worst] == [
        f"{item.record.name} under {item.worst_attack}" for item in digits.defenses
    ]


def test_columns_are_grouped_by_what_the_attack_may_use(site: Path) -> None:
    groups = [a for a in Page(site / "index.html").elements("th") if a.get("scope") == "colgroup"]
    assert [int(group["colspan"]) for group in groups] == [3, 1, 3, 1, 1, 2, 1]


def test_a_defense_page_shows_the_whole_evaluation(site: Path, digits: SuiteSummary) -> None:
    text = Page(site / "digits/defenses/jpeg.html").text
    for one in digits.defenses[3].attacks:
        assert plain(with_interval(one.robust)) in text
        for name in one.record.params:
            assert name in text
    for words in (
        "estimator eot(samples 16, of identity)",
        "RuntimeError: out of luck",
        "6 refused: outside the ball",
        "37.0 % of gradients exactly zero",
        "the graph is cut",
        "150 of 200 examples",
        "1,234",
        "42.1 ms",
        "bench evaluate --suite digits --all-defenses",
        "with uncommitted changes",
        "torch 2.6.0",
        "ab" * 32,
        "weights of 4",
        "by 64.5 percentage points",
    ):
        assert words in text, words


def test_claims_stand_beside_the_measurement(site: Path) -> None:
    text = Page(site / "digits/defenses/madry.html").text
    assert "claimed: Table 2 CIFAR-10 linf 8/255 PGD-20 87.3 % 45.8 %" in text
    assert "measured here digits ℓ∞, ε = 8/255 worst case of 8 85.5 %" in text


def test_breaks_are_told_from_claims(tmp_path: Path) -> None:
    broken = [ClaimRecord(data="imagenet", threat="l2 0.05", robust=0.0, attack="BPDA", source="Table 1")]
    item = defense("jpeg", 1, 10, 5, [6], attacks=[ATTACKS[1]], breaks=broken)
    render([suite("digits", [item], [ATTACKS[1]])], tmp_path, tmp_path / "site")
    assert "broken: Table 1 imagenet l2 0.05 BPDA – 0.0 %" in Page(tmp_path / "site/digits/defenses/jpeg.html").text


def test_a_study_stands_on_its_own_page_and_on_the_page_of_its_defense(tmp_path: Path, digits: SuiteSummary) -> None:
    render([digits, study_suite()], tmp_path, tmp_path / "site")
    for path in ("ours-radius/index.html", "digits/defenses/ours.html"):
        page = Page(tmp_path / "site" / path)
        assert "Robustness by radius" in page.text
        assert "0.1 80.0 % [73.9, 85.0] 10.0 % [6.6, 14.9] 0.0 % –" in page.text
        assert "2 of 3 pairs of variants stand in the paper's order" in page.text
        assert "0.9 – – – –" in page.text and "0.148" in page.text
        assert sum(tag == "polyline" for tag, _ in page.tags) == 2
        assert "bpda-i-eot bpda-i-eot, published" in page.text
    assert "Robustness by radius" not in Page(tmp_path / "site/digits/defenses/madry.html").text
    own = Page(tmp_path / "site/ours-radius/index.html")
    assert "Study: ours-radius" in own.text and "Budgets and every variant" not in own.text


@pytest.mark.parametrize("distance", [None, 0.0])
def test_a_study_of_defenses_that_move_no_image_has_no_column_of_distances(
    tmp_path: Path, digits: SuiteSummary, distance: float | None
) -> None:
    render([digits, study_suite(distance)], tmp_path, tmp_path / "site")
    page = Page(tmp_path / "site/ours-radius/index.html")
    assert "Robustness by radius" in page.text and "Distance" not in page.text
    assert "0.9 – – –" in page.text and "0.9 – – – –" not in page.text


def test_detection_is_shown_with_and_without_rejection(site: Path, digits: SuiteSummary) -> None:
    text = Page(site / "digits/defenses/feature-squeezing.html").text
    detection = digits.defenses[2].detection
    assert detection is not None
    for value in (
        detection.false_positive_rate,
        detection.true_positive_rate,
        detection.robust_with_rejection,
        detection.robust_without_rejection,
    ):
        assert plain(with_interval(value)) in text
    assert plain(percent(detection.accuracy)) in text
    assert "0.731" in text
    assert "41.8 %" in text  # share of one attack's successes that is caught


def test_the_ranking_says_what_a_detector_owes_to_rejecting(site: Path) -> None:
    text = Page(site / "index.html").text
    assert "86.5 % [81.1, 90.6] 90.0 % right and accepted" in text
    assert "classifier alone 5.5 %, stratified 11.0 %" in text
    cards = Page(site / "digits/defenses/feature-squeezing.html").text.partition("Claims and breaks")[0]
    assert "Detection accuracy 76.0 % rejects 56.5 % of the successes of attacks that know it, 4.5 % of clean" in cards
    assert "Stratified robust accuracy 11.0 %" in cards and "the classifier alone 5.5 %" in cards


def test_nothing_stratified_is_said_where_no_attack_looked_for_rejections(digits: SuiteSummary, tmp_path: Path) -> None:
    item = digits.defenses[2]
    assert item.detection is not None
    blind = replace(item, detection=replace(item.detection, near_rejected=None))
    page = Page(render([suite("digits", [blind])], tmp_path, tmp_path / "site"))
    assert "classifier alone 5.5 %" in page.text and "%, stratified" not in page.text


def test_without_a_detector_nothing_is_said_of_detection(site: Path) -> None:
    assert "Detection accuracy" in Page(site / "index.html").text
    assert "Detection accuracy" not in Page(site / "digits-l2/index.html").text
    assert "Detection accuracy" not in Page(site / "digits/defenses/madry.html").text


def test_a_suite_says_which_defenses_have_a_result_elsewhere_alone(digits: SuiteSummary, tmp_path: Path) -> None:
    part, last = suite("a", digits.defenses[:4]), suite("b", digits.defenses[3:5])
    render([digits, part, last, study_suite()], tmp_path, tmp_path / "site")
    few, study = Page(tmp_path / "site/b/index.html"), Page(tmp_path / "site/ours-radius/index.html")
    said = "Defenses 2 4 that have a result in another suite have none here"
    assert f"{said} digits: madry, ours, feature-squeezing, none-again" in few.text
    assert "../digits/defenses/madry.html" in few.links
    assert "Defenses 4 2 that have" in Page(tmp_path / "site/a/index.html").text
    for page in (Page(tmp_path / "site/index.html"), study):  # all are here; variants are missing nowhere
        assert "in another suite" not in page.text


def test_a_flag_of_several_wordings_says_each(digits: SuiteSummary, tmp_path: Path) -> None:
    one, two = digits.defenses[0], digits.defenses[4]
    flags = [Flag("gradient-masking", "gradient masking", f"pgd leaves {share} %.") for share in (40, 50)]
    pair = [replace(one, flags=flags[:1]), replace(two, flags=flags[1:])]
    text = Page(render([suite("digits", pair)], tmp_path, tmp_path / "site")).text
    assert "What it says of each madry: pgd leaves 40 %. none: pgd leaves 50 %." in text


def test_a_tie_is_said_on_the_page_of_the_defense(site: Path) -> None:
    assert "Rank 5= of 5, tied" in Page(site / "digits/defenses/none.html").text
    assert "Rank 1 of 5 Worst attack" in Page(site / "digits/defenses/madry.html").text


def test_it_is_said_on_how_many_examples_attacks_were_run(tmp_path: Path) -> None:
    attacks = [ATTACKS[1].model_copy(update={"examples": 50}), *ATTACKS[7:]]
    item = defense("none", 1, 10, 5, [6, 7, 5], attacks=attacks)
    text = Page(render([suite("digits", [item], attacks)], tmp_path, tmp_path / "site")).text
    assert "2 counted, 1 sanity check on the first examples alone, where they lower the worst case: pgd (50)" in text
    assert "0123456789+ +: with uncommitted changes" in text


def test_the_headline_says_where_an_attack_goes_on_without_gradients(digits: SuiteSummary, tmp_path: Path) -> None:
    ensemble = attack_record("autoattack", queries=200, estimator="exact")
    attacks = [ensemble, ATTACKS[2]]
    item = defense("jpeg", 1, 150, 5, [60, 5], attacks=attacks)
    render([suite("digits", [item], attacks)], tmp_path, tmp_path / "site")
    text = Page(tmp_path / "site/digits/defenses/jpeg.html").text
    assert "(autoattack, which goes on without gradients); adapted" in text


def test_what_worst_for_counts_is_said(site: Path) -> None:
    for path in ("defenses/ours", "attacks/pgd"):
        assert "where several leave the same, also where none breaks" in Page(site / f"digits/{path}.html").text


def test_a_version_of_two_parts_is_no_hash(digits: SuiteSummary, tmp_path: Path) -> None:
    for version, said in (("1+2", "Version 1+2 (the detector's and"), ("ab12", "hash of the plugin's own files ab12")):
        item = digits.defenses[0]
        item = replace(item, record=item.record.model_copy(update={"version": version}))
        render([suite("digits", [item])], tmp_path, tmp_path / "site")
        assert said in Page(tmp_path / "site/digits/defenses/madry.html").text


def test_an_attack_page_ranks_what_it_left(site: Path, digits: SuiteSummary) -> None:
    page = Page(site / "digits/attacks/pgd.html")
    left = [d.attacks[1].robust.value for d in digits.defenses if d.attacks[1].robust]
    bars = [attributes["aria-label"] for attributes in page.elements("svg")]
    assert [float(label.split()[0]) for label in bars] == [100 * value for value in sorted(left, reverse=True)]
    for words in ("What pgd does.", "Plain autograd", "step_size", "restarts"):
        assert words in page.text


def test_the_plot_shows_running_worst_case_only_where_it_is_exact(site: Path, digits: SuiteSummary) -> None:
    def diamonds(name: str) -> int:
        classes = [a.get("class") for a in Page(site / f"digits/defenses/{name}.html").elements("path")]
        return classes.count("together")

    assert diamonds("madry") == 8
    assert diamonds("ours") == 0  # randomised


def test_gallery_images_are_written_and_clipped(site: Path) -> None:
    page = Page(site / "digits/defenses/ours.html")
    images = page.elements("img")
    assert len(images) == 3 * 5
    for attributes in images:
        with Image.open(page.path.parent / attributes["src"]) as image:
            assert (str(image.width), str(image.height)) == (attributes["width"], attributes["height"])
        assert attributes["alt"]
    assert images[3]["width"] == "12"  # g(x) has a size of its own
    assert "multiplied by 15" in page.text and "(x_adv − x) × 15" in page.text
    assert "label zero; predicted zero before and three after" in page.text


def test_a_missing_gallery_is_said_and_the_page_is_there(site: Path) -> None:
    page = Page(site / "digits/defenses/jpeg.html")
    assert "No images: gallery.safetensors is missing" in page.text
    assert not page.elements("img")


def test_tables_are_accessible(site: Path) -> None:
    for page in pages(site):
        assert {"main", "h1"} <= {tag for tag, _ in page.tags}
        assert len(page.elements("table")) == len(page.elements("caption"))
        assert all("scope" in attributes for attributes in page.elements("th"))
        assert page.links[0] == "#main"
        ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
        assert len(ids) == len(set(ids)), page.path


def test_the_downloads_hold_the_numbers_of_the_table(site: Path, digits: SuiteSummary) -> None:
    with (site / "digits/leaderboard.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["defense"] for row in rows] == [d.record.name for d in digits.defenses]
    assert [float(row["worst_case_robust_accuracy"]) for row in rows] == [d.worst_case.value for d in digits.defenses]
    cells = json.loads((site / "digits/cells.json").read_text(encoding="utf-8"))
    assert len(cells) == sum(len(d.attacks) for d in digits.defenses)
    failed = next(c for c in cells if c["defense"] == "jpeg" and c["attack"] == "transfer")
    assert failed["status"] == "failed"
    assert failed["robust_accuracy"] is None
    own = json.loads((site / "digits/defenses/jpeg.json").read_text(encoding="utf-8"))
    assert own == [c for c in cells if c["defense"] == "jpeg"]


def test_json_holds_no_nan_and_csv_no_formula(tmp_path: Path) -> None:
    item = defense("=1+1", 1, 10, 5, [6] * len(ATTACKS), changes={"pgd": {"mean_forward": float("nan")}})
    out = render([suite("digits", [item])], tmp_path, tmp_path / "site").parent
    cells = json.loads((out / "digits/cells.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert cells[1]["mean_forward"] is None
    with (out / "digits/leaderboard.csv").open(newline="", encoding="utf-8") as file:
        assert next(csv.DictReader(file))["defense"] == "'=1+1"


def test_hostile_text_stays_text_and_inside_the_site(tmp_path: Path) -> None:
    attack = attack_record(HOSTILE, loss=HOSTILE).model_copy(
        update={"summary": HOSTILE, "paper": HOSTILE, "url": "javascript:alert(1)"}
    )
    item = defense(
        HOSTILE, 1, 10, 5, [6], attacks=[attack], title=HOSTILE, summary=HOSTILE, family=HOSTILE, tags=[HOSTILE],
        paper=HOSTILE, url="javascript:alert(1)",
    )  # fmt: skip
    item = replace(
        item,
        slug="../../evil",
        flags=[Flag(HOSTILE, HOSTILE, HOSTILE)],
        attacks=[cell(attack, 6, errors=[HOSTILE], notes=[HOSTILE], violations={HOSTILE: 2})],
    )
    hostile = suite("../" + HOSTILE, [item], [attack])
    out = render([replace(hostile, warnings=[HOSTILE])], tmp_path / "results", tmp_path / "deep" / "site").parent
    assert {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*")} == {"deep"}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["site"]
    for page in pages(out):
        assert HOSTILE in page.text
        scripts = [a.get("src") for a in page.elements("script")]
        assert len(scripts) == 2
        assert not any(link.startswith("javascript") for link in page.links)
        for _, attributes in page.tags:
            assert not any(name.startswith("on") for name in attributes)
    row = next(a for a in Page(out / "index.html").elements("tr") if "data-flags" in a)
    assert json.loads(row["data-flags"]) == [HOSTILE]


def test_two_suites_link_to_each_other_and_digits_comes_first(site: Path) -> None:
    assert "Robustness leaderboard: digits" in Page(site / "index.html").text
    assert "digits-l2/index.html" in Page(site / "index.html").links
    assert "../index.html" in Page(site / "digits-l2/index.html").links


def test_the_site_opens_on_cifar10_where_it_has_results(digits: SuiteSummary, tmp_path: Path) -> None:
    other = suite("cifar10", [defense("madry", 1, 150, 80, [140, 85, 84, 86, 88, 99, 101, 120, 0])])
    out = render([suite("a", other.defenses), digits, other], tmp_path, tmp_path / "site").parent
    assert "Robustness leaderboard: cifar10" in Page(out / "index.html").text
    listed = [link for link in Page(out / "index.html").links if link.endswith("index.html")]
    assert listed[-2:] == ["digits/index.html", "a/index.html"]


def test_a_suite_with_one_unmeasured_attack_renders(tmp_path: Path) -> None:
    item = replace(defense("none", 1, 10, 10, [None, 10], attacks=ATTACKS[:2]), worst_attack="clean")
    out = render([suite("tiny", [item], ATTACKS[:3])], tmp_path, tmp_path / "site")
    page = Page(out)
    assert page.text.count("missing") >= 2  # one that failed to run, one that no file mentions
    assert f"{N} examples" in page.text
    assert plain(with_interval(estimate(10))) in page.text
