"""The page that says how published numbers are made again."""

from __future__ import annotations

import json
import re
from pathlib import Path

from bench.reference import reproduce

ROOT = Path(__file__).parents[3]


def _checkpoint(folder: Path, *, defense: str, data: str, threat: dict[str, object] | None, **fields: object) -> None:
    stages = [{"name": "training", "epochs": 5, "seconds": 60.0}]
    training = {"defense": defense, "data": data, "threat": threat, "seconds": 90.0, "params": {}, "stages": stages}
    place = folder / "defenses" / "checkpoints" / defense / f"{data}.json"
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps({"size": 2000, "num_parameters": 1000, "training": training | fields}))


def test_each_training_says_its_command_and_time(tmp_path: Path) -> None:
    ball = {"norm": "l2", "eps": 0.5}
    _checkpoint(tmp_path, defense="madry", data="cifar10", threat=ball, validation_accuracy=0.7)
    _checkpoint(tmp_path, defense="none", data="cifar10", threat=None, params={"network": "resnet8"})
    _checkpoint(tmp_path, defense="trades", data="digits", threat=None)
    text = reproduce.reference(tmp_path)
    madry = "`bench train --suite cifar10-l2 --defense madry --half --data-root DIR`"
    assert f"{madry} | 1,000 | 5 of training | 70.0 % | 2 min |" in text
    assert "`bench train --suite cifar10 --defense none --set network=resnet8 --half --data-root DIR`" in text
    assert "`bench train --all --suite digits` (1 training)" in text
    assert "trades" not in text


def test_trainings_on_digits_are_where_their_command_does_them(tmp_path: Path) -> None:
    madry = {"classifier": "madry"}
    _checkpoint(tmp_path, defense="lid", data="digits", threat=None)
    _checkpoint(tmp_path, defense="lid(classifier=madry)", data="digits", threat=None, params=madry)
    _checkpoint(tmp_path, defense="magnet(classifier=madry)", data="digits", threat=None, params=madry)
    _checkpoint(tmp_path, defense="ours(radius=0.3)", data="digits", threat=None, params={"radius": 0.3})
    text = reproduce._weights(tmp_path / "defenses" / "checkpoints")
    assert "`bench train --all --suite digits` (1 training)" in text
    assert "`bench train --suite digits --defense lid --defense magnet --set classifier=madry` (2 trainings)" in text
    assert "`bench train --all --suite ours-radius` (1 training)" in text


def test_every_row_that_is_published_is_made_by_one_of_the_commands() -> None:
    page = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")
    lists = dict(re.findall(r"^- `(--suite .+?)`: (.+)\.$", page, re.MULTILINE))
    for path in (ROOT / "results").glob("*/*/defense.json"):
        record, suite = json.loads(path.read_text(encoding="utf-8")), path.parents[1].name
        if f"`bench evaluate --suite {suite} --all" in page:
            continue
        settings = "".join(f" --set {name}={value}" for name, value in sorted(record.get("params", {}).items()))
        listed = lists.get(f"--suite {suite} --defense NAME{settings}", "")
        alone = f"`bench evaluate --suite {suite} --defense {record['reference']}{settings} "
        assert alone in page or f"`{record['reference']}`" in listed, f"{path}: write it again: make docs"


def test_every_published_study_is_there() -> None:
    studies = reproduce._studies(ROOT / "results")
    assert "losses.json" in studies and "transformation.json" in studies and "input_gradients.json" in studies
    assert studies in (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8"), "write it again: make docs"


def test_a_study_says_its_command_as_it_is_to_be_given(tmp_path: Path) -> None:
    place = tmp_path / "digits" / "none" / "losses.json"
    place.parent.mkdir(parents=True)
    command = "bench study losses --data folder:here --results mine --workers 2 --quiet --images 5"
    times = {"started": "2026-01-01T10:00:00+00:00", "ended": "2026-01-01T10:03:00+00:00"}
    place.write_text(json.dumps({"provenance": {"command": command, **times}}))
    shown = "`bench study losses --data-root DIR --results results --images 5`"
    assert f"| {shown} | `digits/none/losses.json` | 3 min |" in reproduce._studies(tmp_path)


def test_every_published_certificate_is_there() -> None:
    page = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")
    for path in (ROOT / "results").glob("*/*/@certified/*.json"):
        assert f"`{path.relative_to(ROOT / 'results')}`" in page, "write it again: make docs"


def test_every_published_training_beyond_digits_is_there() -> None:
    assert reproduce._weights(ROOT / "defenses" / "checkpoints") in (ROOT / "docs" / "reproduce.md").read_text(
        encoding="utf-8"
    ), "write it again: make docs"
