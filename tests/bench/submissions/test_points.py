"""Adversarial inputs alone: what lowers a row is kept with its maker's name, what lowers nothing changes nothing."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from stand_ins import Ended, plugin, run_bench, write_config
from submitting import remade, tree
from torch import Tensor

from bench.data.load import load_data
from bench.storing.found import FOUND
from bench.storing.names import readable
from bench.summary.numbers import DefenseSummary
from bench.summary.summarise import summarise

WEAK = {"weak": {"attack": plugin("one_step"), "fraction": 0.3}}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of two defenses under a weak attack alone."""
    folder = tmp_path_factory.mktemp("points")
    config = write_config(folder / "bench.yaml", WEAK, examples=40, shard_size=40)
    names = [word for name in ("Means", "Noisy") for word in ("--defense", plugin(name))]
    where = ["--suite", "tiny", "--config", config, "--results", folder / "results", "--device", "cpu", "--quiet"]
    assert run_bench("evaluate", *where, *names).code == 0
    for path in folder.glob("results/tiny/*/defense.json"):
        record = json.loads(path.read_text())
        record["reference"] = plugin(record["reference"].rpartition(":")[2])  # stored without this machine's folders
        path.write_text(json.dumps(record))
    return folder


@pytest.fixture
def results(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "results", tmp_path / "results"))


def clean() -> tuple[Tensor, Tensor, list[str]]:
    split = load_data("digits").test.take(40)
    return split.x, split.y, split.ids


def strong() -> Tensor:
    """A full step against the class means, which no attack of the suite takes."""
    from stand_ins import Means

    from bench.contracts.inputs import DataInfo

    x, y, _ = clean()
    info: DataInfo = load_data("digits").info
    z = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(torch.nn.functional.cross_entropy(Means(info)(z), y, reduction="sum"), z)
    return (x + 0.2 * grad.sign()).clamp(0, 1)


def submit(made: Path, images: Path, out: Path, *more: object, defense: str = "stand_ins.Means") -> Ended:
    words = ["--suite", "tiny", "--config", made / "bench.yaml", "--images", images, "--out", out]
    return run_bench("submit-attack", "--defense", defense, *words, "--by", "B. Reaker", "--note", "a paper", *more)


def accept(made: Path, bundle: Path, results: Path) -> Ended:
    return run_bench("accept", bundle, "--results", results, "--config", made / "bench.yaml", "--device", "cpu")


def of(results: Path, name: str = "stand_ins.Means") -> DefenseSummary:
    return next(d for d in summarise(results, "tiny").defenses if d.record.name == name)


@pytest.mark.parametrize("defense", ["stand_ins.Means", "stand_ins.Noisy"])
def test_what_lowers_rows_is_kept_and_counted(made: Path, results: Path, tmp_path: Path, defense: str) -> None:
    before = of(results, defense)
    files = tree(results)
    save_file({"x_adv": strong()}, tmp_path / "x.safetensors")
    assert submit(made, tmp_path / "x.safetensors", tmp_path / "bundle", defense=defense).code == 0
    ended = accept(made, tmp_path / "bundle", results)
    assert ended.code == 0, ended
    assert "B. Reaker" in ended.out and f"{100 * before.worst_case.value:.1f} %" in ended.out
    after = of(results, defense)
    assert after.worst_case.value < before.worst_case.value and after.complete and after.rank is not None
    old, new = after.history
    assert old.robust == before.worst_case and new.robust == after.worst_case
    assert new.by == "B. Reaker" and new.note == "a paper" and new.date[:2] == "20" and new.examples > 0
    assert {name: content for name, content in tree(results).items() if "@found" not in name} == files
    cell = next(each for each in after.attacks if each.record.name == FOUND)
    assert cell.robust is not None and cell.robust.n == new.examples
    ended = run_bench("verify", "--suite", "tiny", "--results", results, "--device", "cpu", "--defense", defense)
    assert ended.code == 0 and f"× {FOUND}: 0 of {new.examples} rows differ" in ended.out, ended
    ended = run_bench("report", "--results", results)
    numbers = [f"{100 * share.value:.1f} %" for share in (before.worst_case, after.worst_case)]
    line = f"submitted attack, {defense}: worst case {numbers[0]} to {numbers[1]}, by B. Reaker, {new.date[:10]}"
    assert ended.code == 0 and line in ended.out.splitlines()
    assert run_bench("compact", "--suite", "tiny", "--results", results).code == 0
    assert of(results, defense).worst_case == after.worst_case


@pytest.mark.parametrize("word", ["by", "note"])
def test_too_long_a_word_is_refused_in_a_line_before_anything_is_written(made: Path, tmp_path: Path, word: str) -> None:
    save_file({"x_adv": strong()}, tmp_path / "x.safetensors")
    ended = submit(made, tmp_path / "x.safetensors", tmp_path / "bundle", f"--{word}", "n" * 2001)
    assert ended.code == 2 and ended.err.startswith(f"error: --{word}: 2001 characters; at most ")
    assert len(ended.err.splitlines()) == 1 and not (tmp_path / "bundle").exists()


def test_whoever_submits_is_one_line_of_the_report(made: Path, results: Path, tmp_path: Path) -> None:
    save_file({"x_adv": strong()}, tmp_path / "x.safetensors")
    assert submit(made, tmp_path / "x.safetensors", tmp_path / "bundle", "--by", "<b>\nx\x1b[2J").code == 0
    ended = accept(made, tmp_path / "bundle", results)
    assert ended.code == 0 and ", by <b> x\N{REPLACEMENT CHARACTER}[2J; worst case" in ended.out
    broken = "x\N{REPLACEMENT CHARACTER}"
    for form, by in (("table", f"<b> {broken}[2J"), ("markdown", f"&lt;b&gt; {broken}")):
        out = run_bench("report", "--results", results, "--format", form).out
        assert f", by {by}" in next(line for line in out.splitlines() if line.startswith("submitted attack, "))


def test_what_lowers_nothing_changes_nothing(made: Path, results: Path, tmp_path: Path) -> None:
    x, _, _ = clean()
    save_file({"x_adv": x}, tmp_path / "x.safetensors")
    assert submit(made, tmp_path / "x.safetensors", tmp_path / "bundle").code == 0
    before = tree(results)
    ended = accept(made, tmp_path / "bundle", results)
    assert ended.code == 2 and len(ended.err.splitlines()) == 1
    assert "none of the 40 examples lowers" in ended.err and "nothing is written" in ended.err
    assert tree(results) == before


def test_the_same_again_lowers_nothing(made: Path, results: Path, tmp_path: Path) -> None:
    save_file({"x_adv": strong()}, tmp_path / "x.safetensors")
    submit(made, tmp_path / "x.safetensors", tmp_path / "bundle")
    assert accept(made, tmp_path / "bundle", results).code == 0
    before = tree(results)
    assert accept(made, tmp_path / "bundle", results).code == 2
    assert tree(results) == before


def test_two_submissions_make_a_history(made: Path, results: Path, tmp_path: Path) -> None:
    _, _, ids = clean()
    points = strong()
    for part in (slice(0, 20), slice(20, 40)):
        file, bundle = tmp_path / f"{part.start}.safetensors", tmp_path / f"bundle{part.start}"
        save_file({"x_adv": points[part].clone()}, file, {"ids": "\n".join(ids[part])})
        assert submit(made, file, bundle).code == 0
        assert accept(made, bundle, results).code == 0
    numbers = [point.robust.value for point in of(results).history]
    assert len(numbers) == 3 and numbers == sorted(numbers, reverse=True) and numbers[0] > numbers[1] > numbers[2]


def test_points_outside_the_ball_lower_nothing(made: Path, results: Path, tmp_path: Path) -> None:
    x, _, _ = clean()
    far = x + 2 * (strong() - x)
    far[0] = x[0]
    save_file({"x_adv": far.clamp(0, 1)}, tmp_path / "x.safetensors")
    assert submit(made, tmp_path / "x.safetensors", tmp_path / "bundle").code == 0
    before = tree(results)
    ended = accept(made, tmp_path / "bundle", results)
    assert ended.code == 2 and "outside the threat model" in ended.err and tree(results) == before


def write_pictures(folder: Path, x: Tensor, ids: list[str]) -> None:
    folder.mkdir()
    for image, name in zip(x, ids, strict=True):
        pixels = (255 * image[0]).round().numpy().astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{readable(name)}.png")


def test_a_folder_of_pictures(made: Path, results: Path, tmp_path: Path) -> None:
    _, _, ids = clean()
    write_pictures(tmp_path / "png", strong()[:25], ids[:25])
    assert submit(made, tmp_path / "png", tmp_path / "bundle").code == 0
    before = of(results).worst_case.value
    assert accept(made, tmp_path / "bundle", results).code == 0
    assert of(results).worst_case.value < before


@pytest.mark.parametrize(
    ("what", "complaint"),
    [
        ("shape", "floats of shape"),
        ("id", "is no example of tiny"),
        ("twice", "names an example twice"),
        ("many", "41 images, the suite has 40"),
        ("name", "expected the tensor x_adv"),
        ("far", "none is inside the threat model"),
        ("pickle", "no safetensors file"),
        ("missing", "no such file"),
        ("npz", "expected a safetensors file"),
    ],
)
def test_images_that_are_none_of_the_suite_are_one_line(
    made: Path, tmp_path: Path, what: str, complaint: str
) -> None:
    x, _, ids = clean()
    file = tmp_path / ("x.npz" if what == "npz" else "x.safetensors")
    words = {"id": {"ids": "\n".join(["../x", *ids[1:]])}, "twice": {"ids": "\n".join([ids[1], *ids[1:]])}}
    tensors = {
        "shape": {"x_adv": x[:, :, :4].clone()},
        "many": {"x_adv": torch.cat([x, x[:1]])},
        "name": {"images": x},
        "far": {"x_adv": 1 - x},
    }
    if what == "pickle":
        torch.save({"x_adv": x}, file)
    elif what != "missing":
        save_file(tensors.get(what, {"x_adv": x}), file, words.get(what))
    ended = submit(made, file, tmp_path / "bundle")
    assert ended.code == 2 and complaint in ended.err and len(ended.err.splitlines()) == 1, ended
    assert not (tmp_path / "bundle").exists()


def test_a_picture_that_unfolds_is_not_unpacked(made: Path, tmp_path: Path) -> None:
    _, _, ids = clean()
    (tmp_path / "png").mkdir()
    Image.new("L", (12000, 12000)).save(tmp_path / "png" / f"{readable(ids[0])}.png")
    ended = submit(made, tmp_path / "png", tmp_path / "bundle")
    assert ended.code == 2 and ("expected 8×8 L" in ended.err or "can be read" in ended.err), ended
    (tmp_path / "png" / f"{readable(ids[0])}.png").unlink()
    with zipfile.ZipFile(tmp_path / "png" / f"{readable(ids[0])}.png", "w") as file:
        file.writestr("x", b"\0" * 100000)
    ended = submit(made, tmp_path / "png", tmp_path / "bundle")
    assert ended.code == 2 and "is no PNG file" in ended.err and not (tmp_path / "bundle").exists()


def test_who_receives_checks_what_it_is_for(made: Path, results: Path, tmp_path: Path) -> None:
    save_file({"x_adv": strong()}, tmp_path / "x.safetensors")
    submit(made, tmp_path / "x.safetensors", tmp_path / "bundle")
    before = tree(results)
    for changes, complaint in (
        ({"defense": "nobody"}, "hold no 'nobody'"),
        ({"suite_key": "0" * 64}, "other examples or another ball"),
        ({"kind": "defense"}, "suite.json"),
    ):
        shutil.copytree(tmp_path / "bundle", tmp_path / complaint)
        remade(tmp_path / complaint, **changes)
        ended = accept(made, tmp_path / complaint, results)
        assert ended.code == 2 and complaint in ended.err and len(ended.err.splitlines()) == 1, ended
        assert tree(results) == before
