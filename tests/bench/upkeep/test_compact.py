"""`bench compact`: what is kept, and that everything shown stays as it was."""

from __future__ import annotations

import json
import lzma
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save_file
from small_bench import FAILING, STEP, Bench, points
from stand_ins import plugin, run_bench

from bench.storing.joined import JOINED
from bench.storing.lock import writing
from bench.storing.records import CLEAN
from bench.storing.store import Store, unzipped
from bench.summary.results import DefenseResults
from leaderboard.gallery import Gallery, write_gallery


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Two attacks that are each the worst for some examples, of a plain and of a randomised defense."""
    attacks = {"step": STEP, "half": {**STEP, "fraction": 0.5}, "noise": {"draws": 30}}
    bench = Bench(tmp_path / "work").configure(attacks)
    assert bench.evaluate("Means", "Noisy").code == 0
    return bench


def _compact(bench: Bench) -> str:
    ended = run_bench("compact", "--results", str(bench.results))
    assert ended.code == 0
    return ended.out


def _files(bench: Bench) -> dict[str, bytes]:
    files = (path for path in bench.results.rglob("*") if path.is_file())
    return {str(path.relative_to(bench.results)): path.read_bytes() for path in files}


def _shards(bench: Bench) -> dict[str, bytes]:
    return {key: data for key, data in _files(bench).items() if key.count("/") == 3 and ".headers" not in key}


def test_every_number_stays_and_the_files_are_smaller(bench: Bench) -> None:
    before = bench.summary
    _compact(bench)
    assert bench.summary == before
    cells = [path for path in bench.results.glob("tiny/*/*") if path.is_dir()]
    assert len(cells) == 8 and not list(bench.results.glob("tiny/*/*/*.json"))
    assert all((cell / JOINED).exists() for cell in cells)


@pytest.mark.parametrize("name", ["stand_ins.Means", "stand_ins.Noisy"])
def test_the_input_of_the_worst_attack_of_every_example_is_kept(bench: Bench, name: str) -> None:
    store = Store(bench.results, "tiny")
    suite, record = store.suite(), store.defense(name)
    assert suite is not None and record is not None
    found = DefenseResults(store, suite, record)
    _, chosen = found.worst(found.names())
    expected = {}
    for attack, cell in found.cells.items():
        for shard in cell.shards:
            for row, image in zip(shard.rows, points(store, shard), strict=True):
                if dict(zip(suite.ids, chosen, strict=True))[row.id] == attack:
                    expected[row.id] = image
    _compact(bench)
    kept = {}
    for attack in found.cells:
        for number in range(3):
            shard = store.shard(name, attack, number)
            assert shard is not None and shard.x_adv_rows is not None
            if shard.x_adv_rows:
                for row, image in zip(shard.x_adv_rows, points(store, shard), strict=True):
                    kept[shard.rows[row].id] = image
            else:
                assert not store.shard_path(name, attack, number).with_suffix(".safetensors").exists()
    assert sorted(kept) == sorted(expected) == sorted(i for i, a in zip(suite.ids, chosen, strict=True) if a != CLEAN)
    assert all(torch.equal(kept[key], expected[key]) for key in kept)


def test_compacting_twice_changes_nothing(bench: Bench) -> None:
    _compact(bench)
    once = _files(bench)
    _compact(bench)
    assert _files(bench) == once


def test_a_shard_that_is_compact_is_not_written_again(bench: Bench) -> None:
    _compact(bench)
    cells = list(bench.results.glob(f"tiny/*/*/{JOINED}"))
    for path in cells:  # with other spaces, as another version could have written them
        path.write_bytes(lzma.compress(json.dumps(json.loads(lzma.decompress(path.read_bytes()))).encode()))
    once = _files(bench)
    _compact(bench)
    assert cells and _files(bench) == once


def test_fields_that_say_nothing_are_not_written(bench: Bench) -> None:
    for path in bench.results.glob("tiny/*/*/*.json"):
        raw = json.loads(path.read_text())
        assert not {"tier", "awareness"} & set(raw["key"].get("attack") or {}), path
        assert "towards" not in raw["key"]["suite"] and "towards" not in raw, path
        assert "threshold" in raw["key"]["judging"] and "attack" in raw["key"], "always written, none or not"


def test_nothing_is_run_again_and_the_gallery_shows_what_is_kept(bench: Bench) -> None:
    _compact(bench)
    before = _shards(bench)
    shown = [len(defense.record.gallery) for defense in bench.summary.defenses]
    ended = bench.evaluate("Means", "Noisy")
    assert ended.code == 0 and ended.ran == []
    assert _shards(bench) == before
    assert [len(defense.record.gallery) for defense in bench.summary.defenses] == shown != [0, 0]


def test_pictures_of_8_bits_take_a_quarter_and_are_shown_as_before(bench: Bench, tmp_path: Path) -> None:
    entries = bench.summary.defenses[0].record.gallery[:2]
    store = Store(bench.results, "tiny")
    path = store.gallery_path("stand_ins.Means")
    levels = torch.randint(0, 256, (2, 2, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    x, x_adv = levels.float() / 255
    between = (x + 0.5 / 255).clamp(max=1)
    save_file({"x": x, "x_adv": x_adv, "g_x": between, "g_x_adv": between.flip(0)}, path)

    def shown(folder: str) -> tuple[Gallery, list[bytes]]:
        gallery = write_gallery(store.gallery_path("stand_ins.Means"), entries, tmp_path, folder)
        pictures = [picture.path for example in gallery.examples for picture in example.pictures]
        return gallery, [(tmp_path / picture).read_bytes() for picture in pictures]

    before, size = shown("images"), path.stat().st_size
    _compact(bench)
    small = store.gallery_path("stand_ins.Means")
    assert small.suffix == ".gz" and not path.exists()
    kept = load(unzipped(small))
    assert {name: image.dtype for name, image in kept.items()} == {
        "x": torch.uint8, "x_adv": torch.uint8, "g_x": torch.float32, "g_x_adv": torch.float32,
    }  # fmt: skip
    assert torch.equal(kept["x"].float() / 255, x) and small.stat().st_size < 0.65 * size
    assert shown("images") == before and len(before[1]) == 10
    again = small.read_bytes()
    _compact(bench)
    assert small.read_bytes() == again and not path.exists()
    store.write_gallery("stand_ins.Means", unzipped(small))  # as a run does
    assert store.gallery_path("stand_ins.Means") == path and not small.exists()


def test_a_compressed_gallery_that_is_cut_off_is_said_on_its_page(bench: Bench, tmp_path: Path) -> None:
    _compact(bench)
    path = Store(bench.results, "tiny").gallery_path("stand_ins.Means")
    path.write_bytes(path.read_bytes()[:-9])
    entries = bench.summary.defenses[0].record.gallery
    assert write_gallery(path, entries, tmp_path, "images").problem == "gallery.safetensors.gz cannot be read"


def test_an_attack_that_runs_again_replaces_the_compressed_shard(bench: Bench) -> None:
    _compact(bench)
    bench.configure({"step": {**STEP, "fraction": 0.9}, "half": {**STEP, "fraction": 0.5}, "noise": {"draws": 30}})
    assert bench.evaluate("Means").code == 0
    names = sorted(path.name for path in bench.results.glob("tiny/stand_ins.Means/step/*"))
    assert names == [f"{number:03d}{suffix}" for number in range(3) for suffix in (".json", ".safetensors")] + [JOINED]
    assert next(d for d in bench.summary.defenses if d.record.name == "stand_ins.Means").complete
    _compact(bench)
    assert run_bench("verify", "--results", str(bench.results), "--suite", "tiny", "--device", "cpu",
                     "--defense", "stand_ins.Means").code == 0  # fmt: skip


def test_what_is_kept_is_judged_again(bench: Bench) -> None:
    _compact(bench)
    arguments = ("verify", "--results", str(bench.results), "--suite", "tiny", "--device", "cpu")
    ended = run_bench(*arguments)
    assert ended.code == 0
    assert f"stand_ins.Means × {CLEAN}: 0 of 12 rows differ" in ended.out
    stored = next((bench.results / "tiny/stand_ins.Means").glob("*/*.safetensors*"))
    stored.write_bytes(stored.read_bytes()[:-1] + b"x")
    assert run_bench(*arguments).code == 1


def test_an_incomplete_defense_is_left_alone(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "work").configure({"step": STEP, "failing": FAILING})
    assert bench.evaluate("Means").code == 1
    before = _files(bench)
    assert "not complete: failing" in _compact(bench)
    removed = (".prepared", ".headers")
    assert {k: v for k, v in _files(bench).items() if not any(part in k for part in removed)} == {
        k: v for k, v in before.items() if not any(part in k for part in removed)
    }


def test_no_results_are_refused(tmp_path: Path) -> None:
    ended = run_bench("compact", "--results", str(tmp_path))
    assert ended.code == 2
    assert plugin("Means") not in ended.err and "no results" in ended.err


def test_nothing_is_compacted_while_a_run_writes_there(bench: Bench) -> None:
    before = _files(bench)
    with writing(bench.store.folder, "bench evaluate --all"):
        ended = run_bench("compact", "--results", str(bench.results))
    assert ended.code == 2
    assert f"process {os.getpid()} on " in ended.err and "writes there (bench evaluate --all)" in ended.err
    assert _files(bench) == before
