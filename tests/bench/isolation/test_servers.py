"""A defense in a server answers as it does here, cannot do what it must not, and takes nobody along when it fails."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import isolated
import pytest
import torch
from isolated import INFO, Honest
from torch import Tensor

from attacks.toolkit.estimators import as_estimator
from attacks.toolkit.losses import Goal, margin
from bench.contracts.defense import Defense, DefenseSpec
from bench.contracts.errors import InputError
from bench.contracts.isolation import LEVELS, Level
from bench.contracts.seeding import seeded
from bench.contracts.target import Target
from bench.contracts.threat import Lp
from bench.isolation import opening
from bench.isolation.attempts import LABELS, NEIGHBOUR, OUTSIDE, SOCKET
from bench.isolation.nursery import Nursery, ServerLost
from bench.isolation.opening import Isolation, build_apart, decide, objection, open_defense
from bench.isolation.places import Places, places
from bench.isolation.remote import RemoteDefense
from bench.isolation.serving import KEPT_FROM_IT
from bench.isolation.trial import trial
from bench.judging.again import ask_again, in_a_crowd
from bench.judging.probe import is_random, kind_of, writes_into_input

HERE = Path(isolated.__file__)
ISOLATING = LEVELS[1:]


def _spec(name: str = "Honest", **params: Any) -> DefenseSpec:
    return DefenseSpec(f"{HERE}:{name}", params)


@pytest.fixture(scope="module")
def hidden(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("results")
    (folder / "suite.json").write_text('{"labels": [1, 2, 3]}')
    yield str(folder)
    for key in list(opening._nurseries):
        opening._nurseries.pop(key).close()


@pytest.fixture(scope="module", params=ISOLATING)
def level(request: pytest.FixtureRequest, hidden: str) -> Level:
    """Each level that this machine has."""
    chosen: Level = request.param
    if why := objection(chosen, places(_spec(), [hidden])):
        pytest.skip(f"{chosen}: {why}")
    return chosen


def _open(level: Level, hidden: str, name: str = "Honest", **params: Any) -> RemoteDefense:
    defense = open_defense(_spec(name, **params), INFO, isolation=Isolation(level, (hidden,))).defense
    assert isinstance(defense, RemoteDefense)
    return defense


@pytest.fixture(scope="module")
def remote(level: Level, hidden: str) -> Iterator[RemoteDefense]:
    defense = _open(level, hidden)
    yield defense
    defense.close()


@pytest.fixture(scope="module")
def local() -> Defense:
    return Honest(INFO).eval().requires_grad_(False)


def _images(n: int = 6) -> Tensor:
    return torch.rand(n, *INFO.shape, generator=torch.Generator().manual_seed(n))


def _target(defense: Defense, **fields: Any) -> Target:
    made = torch.Generator().manual_seed(0)
    return Target(defense, Lp("linf", 0.1), 6, knowledge="gradient", generator=made, **fields)


def test_it_says_what_it_is(remote: RemoteDefense, local: Defense) -> None:
    from bench.storing.digest import state_digest

    assert kind_of(remote) == kind_of(local) == "defense Honest"
    assert remote.about.weights == state_digest(local)
    assert remote.about.parameters == sum(p.numel() for p in local.parameters())
    assert (remote.card, remote.randomized, list(remote.approximations())) == (local.card, False, ["smooth", "itself"])
    assert {name: value.tolist() for name, value in remote.weights().items()} == {
        name: value.tolist() for name, value in local.state_dict().items()
    }


def test_it_answers_as_it_does_here(remote: RemoteDefense, local: Defense) -> None:
    x = _images()
    for part in ("forward", "transform", "detect"):
        assert torch.equal(getattr(remote, part)(x), getattr(local, part)(x))
    z = local.transform(x)
    assert torch.equal(remote.classifier(z), local.classifier(z))
    for name, declared in local.approximations().items():
        assert torch.equal(remote.approximations()[name].through(x), declared.through(x))
    assert list(remote.variants()) == list(local.variants()) == ["half"]
    assert torch.equal(remote.variants()["half"](x), local.variants()["half"](x))
    theirs, ours = remote.guide(), local.guide()
    assert theirs is not None
    assert ours is not None
    assert theirs.picks == ours.picks
    assert torch.equal(theirs.logits(x), ours.logits(x))
    label = torch.arange(len(x)) % INFO.num_classes
    assert torch.equal(theirs.forced(x, label), ours.forced(x, label))


@pytest.mark.parametrize(
    "estimator",
    ["exact", "identity", "classifier", {"bpda": "smooth"}, {"bpda": "itself"}, {"finite_difference": {"samples": 8}}],
)
def test_every_estimator_has_the_same_gradients(remote: RemoteDefense, local: Defense, estimator: Any) -> None:
    x, index, y = _images(), torch.arange(6), torch.arange(6)
    of = as_estimator(estimator)
    found = [of.evaluate(_target(defense), x, Goal(margin, y), index) for defense in (remote, local)]
    assert found[1].grad.abs().sum() > 0
    for field in ("loss", "grad", "logits"):
        assert torch.equal(*(getattr(one, field) for one in found))
    slopes = [of.jacobian(_target(defense), x, index, torch.tensor([[0, 3]] * 6)) for defense in (remote, local)]
    assert torch.equal(slopes[0].grads, slopes[1].grads)


def test_attacks_see_the_detector_with_its_gradients(remote: RemoteDefense, local: Defense) -> None:
    x, index, y = _images(), torch.arange(6), torch.arange(6)
    found = []
    for defense in (remote, local):
        target = _target(defense, threshold=5.0)
        at = as_estimator("exact").evaluate(target, x, Goal(margin, y), index)
        found.append((*target.score_gradient(x), at.grad, target.labels(x)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_batch_larger_than_the_shared_memory_is_answered(remote: RemoteDefense, local: Defense) -> None:
    x = _images(6000)  # more than a mebibyte there and, of the transform, back
    assert torch.equal(remote.transform(x), local.transform(x))
    assert torch.equal(remote(x[:2]), local(x[:2]))


def test_draws_follow_the_seed_and_nothing_else(level: Level, hidden: str) -> None:
    one, x = _open(level, hidden, noise=0.5), _images()
    assert is_random(one, x)
    answers = []
    for _ in range(2):
        with seeded("some stream"):
            answers.append(torch.stack([one(x), one(x)]))
    assert torch.equal(*answers)
    assert not torch.equal(answers[0][0], answers[0][1])
    with seeded("some stream"):
        assert torch.equal(_open(level, hidden, noise=0.5)(x), answers[0][0])  # in another server too
    loss = as_estimator({"eot": {"samples": 4, "of": "exact", "average": "logits"}})
    at = loss.evaluate(_target(one, randomized=True), x, Goal(margin, torch.arange(6)), torch.arange(6))
    assert at.grad.abs().sum() > 0


def test_buffers_that_a_defense_changes_are_put_back(remote: RemoteDefense) -> None:
    remote.mark()
    assert remote.restore() is False


# -- what it must not do ---------------------------------------------------------------------------------------


def test_what_a_cheat_would_try_fails_from_landlock_on(level: Level, hidden: str) -> None:
    where = places(_spec(), [hidden])
    got_through = trial(opening._nursery(level, where), where)
    if level == "process":  # the attempts are real: without a sandbox they succeed
        assert {LABELS, OUTSIDE, SOCKET} <= set(got_through) <= {LABELS, OUTSIDE, SOCKET, NEIGHBOUR}
    else:
        assert got_through == []


@pytest.mark.parametrize("what", ["read", "write", "socket"])
def test_a_plugin_cannot_do_it_either(level: Level, hidden: str, what: str, tmp_path: Path) -> None:
    where = {"read": f"{hidden}/suite.json", "write": str(tmp_path / "written"), "socket": ""}[what]
    if level == "process":
        _open(level, hidden, "Snoops", what=what, where=where)
        return
    with pytest.raises(InputError, match=r"Snoops raised (Permission|FileNotFound|OS)Error"):
        _open(level, hidden, "Snoops", what=what, where=where)
    assert not (tmp_path / "written").exists()


def test_a_plugin_that_loads_data_in_its_constructor_is_told_what_to_do(hidden: str, tmp_path: Path) -> None:
    (tmp_path / "reads.py").write_text(
        "from torch import nn\n"
        "from bench import Defense\n"
        "from bench.data.load import load_data\n"
        "class Reads(Defense):\n"
        "    trainable = False\n"
        "    def __init__(self, data):\n"
        "        super().__init__(data)\n"
        "        self.means = load_data('digits').train.x.mean(0)\n"
        "        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    spec, tried = DefenseSpec(f"{tmp_path}/reads.py:Reads"), 0
    for level in ("landlock", "bubblewrap"):
        if objection(level, places(spec, [hidden])):  # type: ignore[arg-type]
            continue
        with pytest.raises(InputError) as error:
            open_defense(spec, INFO, isolation=Isolation(level, (hidden,)))  # type: ignore[arg-type]
        line, tried = str(error.value), tried + 1
        assert "Reads raised PermissionError" in line or "Reads raised FileNotFoundError" in line
        assert line.endswith(KEPT_FROM_IT) and "--with FILE" in line and "\n" not in line
    if not tried:
        pytest.skip("no sandbox on this machine")
    assert isinstance(open_defense(spec, INFO, isolation=Isolation("process", (hidden,))).defense, RemoteDefense)


def test_it_may_write_where_temporary_files_go(level: Level, hidden: str) -> None:
    _open(level, hidden, "Snoops", what="scratch")


def test_what_it_patches_is_patched_nowhere_else(level: Level, hidden: str) -> None:
    from bench.contracts import answers

    before = answers.predictions
    _open(level, hidden, "Snoops", what="patch")
    assert answers.predictions is before is not None


# -- when it fails ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("dies", r"died \(SIGSEGV\)"),
        ("exits", r"died \(exit code 3\): no more of this"),
        ("babbles", r"answered nonsense"),
    ],
)
def test_a_server_that_fails_is_one_line(level: Level, hidden: str, how: str, said: str) -> None:
    defense = _open(level, hidden, "Misbehaves", how=how)
    defense(_images())
    with pytest.raises(ServerLost, match=said) as error:
        defense(torch.full((1, *INFO.shape), 0.75))
    assert "\n" not in str(error.value)
    assert not defense.open
    with pytest.raises(ServerLost, match=said):  # and stays lost
        defense(_images())


def test_a_server_that_hangs_is_ended(hidden: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.isolation.nursery.ANSWER_SECONDS", 5.0)
    defense = _open("process", hidden, "Misbehaves", how="hangs")
    with pytest.raises(ServerLost, match=r"gave no answer within 5 s"):
        defense(torch.full((1, *INFO.shape), 0.75))


@pytest.mark.parametrize(
    ("how", "error", "said"),
    [("raises", RuntimeError, r"'what it wanted' \(.*isolated.py:\d+\)"), ("swallows", torch.OutOfMemoryError, "^$")],
)
def test_what_it_raises_is_raised_here_and_it_lives_on(hidden: str, how: str, error: type, said: str) -> None:
    defense = _open("process", hidden, "Misbehaves", how=how)
    with pytest.raises(error, match=said) as found:
        defense(torch.full((1, *INFO.shape), 0.75))
    assert type(found.value).__name__ == ("KeyError" if how == "raises" else "OutOfMemoryError")
    assert defense(_images()).shape == (6, 10)


def test_writing_into_the_input_is_found_out(hidden: str, tmp_path: Path) -> None:
    (tmp_path / "writer.py").write_text(
        f"import sys; sys.path.insert(0, {str(HERE.parent)!r})\n"
        "from isolated import Honest\n"
        "class Writer(Honest):\n"
        "    version = 1\n"
        "    def forward(self, x):\n"
        "        return super().forward(x.mul_(0.5))\n"
    )
    spec = DefenseSpec(f"{tmp_path}/writer.py:Writer")
    defense = open_defense(spec, INFO, isolation=Isolation("process", (hidden,))).defense
    with pytest.raises(InputError, match="writes into its input; work on a copy"):
        writes_into_input(defense, _images())


# -- which level -----------------------------------------------------------------------------------------------


def test_code_that_is_shipped_here_and_what_is_asked_not_to_be_runs_here(hidden: str) -> None:
    assert decide(DefenseSpec("none"), "auto", [hidden]).level == "none"
    assert decide(_spec(), "none", [hidden]).level == "none"
    with pytest.raises(InputError, match=r"isolation 'proces' is none of .*did you mean 'process'"):
        decide(_spec(), "proces", [hidden])


def test_auto_takes_the_strongest_that_keeps_its_word(hidden: str, monkeypatch: pytest.MonkeyPatch) -> None:
    objections = {"bubblewrap": "no bwrap", "landlock": "", "process": ""}
    monkeypatch.setattr(opening, "objection", lambda level, where: objections[level])
    assert decide(_spec(), "auto", [hidden]).level == "landlock"
    assert decide(DefenseSpec("none"), "process", [hidden]).level == "process"  # a level that is named is anybody's
    with pytest.raises(InputError, match="isolation bubblewrap: cannot be had here: no bwrap"):
        decide(_spec(), "bubblewrap", [hidden])
    objections["landlock"] = "this kernel has no Landlock"
    assert decide(_spec(), "auto", [hidden]).level == "process"


def test_a_level_that_does_not_keep_its_word_is_not_believed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(opening, "trial", lambda nursery, where: [OUTSIDE, SOCKET])
    monkeypatch.setattr(opening, "_nursery", lambda level, where: None)
    where = Places((str(tmp_path),), ())
    if opening.landlock.version():
        assert objection("landlock", where) == f"a plugin could {OUTSIDE}, {SOCKET}"


def test_a_program_that_cannot_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "python").write_text("#!/bin/sh\necho out of order >&2\nexit 1\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    with pytest.raises(ServerLost, match="cannot be started: out of order"):
        Nursery("process", Places((), ()))


# -- what a start costs ---------------------------------------------------------------------------------------


def _nursery_of(defense: Defense) -> Nursery:
    assert isinstance(defense, RemoteDefense)
    return defense._channel._nursery


def test_one_process_serves_all_folders_where_it_sees_no_files_itself(hidden: str, tmp_path: Path) -> None:
    shutil.copy(HERE, tmp_path / "elsewhere.py")
    specs = _spec(), DefenseSpec(f"{tmp_path / 'elsewhere.py'}:Honest")
    one, other = (open_defense(spec, INFO, isolation=Isolation("process", (hidden,))).defense for spec in specs)
    assert _nursery_of(one) is _nursery_of(other)


def test_what_is_shipped_here_comes_from_the_process_of_the_defense_beside_it(hidden: str, level: Level) -> None:
    defense, isolation = _open(level, hidden), Isolation(level, (hidden,))
    shipped = build_apart(DefenseSpec("none"), INFO, "cpu", None, isolation, beside=_spec())
    assert _nursery_of(shipped) is _nursery_of(defense)


def test_a_stranger_reads_its_own_folder_whatever_is_beside_it(hidden: str, level: Level, tmp_path: Path) -> None:
    shutil.copy(HERE, tmp_path / "elsewhere.py")
    stranger, isolation = DefenseSpec(f"{tmp_path / 'elsewhere.py'}:Honest"), Isolation(level, (hidden,))
    assert build_apart(stranger, INFO, "cpu", None, isolation, beside=_spec())(_images()).shape == (6, 10)


def test_another_environment_is_another_process(hidden: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where = places(_spec(), [hidden])
    before = opening._nursery("process", where)
    monkeypatch.setenv("TORCH_HOME", "/nowhere")
    assert opening._nursery("process", where) is not before


def test_the_first_gradient_of_a_server_imports_nothing() -> None:
    code = """
from bench.isolation import server
import sys, torch
server._prepare()
x, before = torch.ones(1, requires_grad=True), set(sys.modules)
torch.autograd.grad(2 * x, x, torch.ones(1))
sys.exit(', '.join(set(sys.modules) - before)[:100] or 0)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_library_is_imported_for_all_servers_and_one_that_fails_for_none(
    hidden: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = tmp_path / "noted"
    (tmp_path / "slow.py").write_text(f"with open({str(noted)!r}, 'a') as file:\n    file.write('imported ')\n")
    (tmp_path / "broken.py").write_text("raise OSError('broken')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    where = places(_spec(), [hidden])
    nursery = opening._nursery("process", where)
    for _ in range(2):
        channel = nursery.fork(where, ("slow", "broken", "nowhere"))
        assert channel.open
        channel.close()
    assert noted.read_text() == "imported "


# -- asked again -----------------------------------------------------------------------------------------------


def test_two_servers_of_an_honest_defense_agree_and_of_one_that_remembers_do_not(hidden: str) -> None:
    x, y = _images(24), torch.zeros(24, dtype=torch.int64)
    for name, params, randomized, differs in (
        ("Honest", {}, False, False),
        ("Honest", {"noise": 0.4}, True, False),
        ("Remembers", {}, False, True),
    ):
        attacked, fresh = (_open("process", hidden, name, **params) for _ in range(2))
        attacked(_images(5))
        y = attacked(x).argmax(1)
        found = ask_again(fresh, attacked, x, y, randomized=randomized, threshold=None)
        assert found.rows == 24
        assert (found.differing > 0) is differs, name


def test_a_defense_that_listens_for_gradients_shows_itself_to_a_judge_that_takes_them(hidden: str) -> None:
    x, threat = _images(24), Lp("linf", 0.1)
    honest = _open("process", hidden)(x)
    for name, differs in (("Honest", False), ("Listens", True)):
        attacked, fresh = (_open("process", hidden, name) for _ in range(2))
        for one in (attacked, fresh):
            for _ in range(3):
                one(x)  # asked without a gradient, both answer alike
        assert torch.equal(attacked(x), fresh(x))
        in_a_crowd(attacked, threat, gradients=True)(x)  # it has heard a gradient now
        found = ask_again(fresh, attacked, x, torch.zeros(24), randomized=False, threshold=None)
        assert (found.differing > 0) is differs, name
        # The judge asks for one every other time, so that most of its questions are answered as an attack's are.
        judge = in_a_crowd(fresh, threat)
        alike = torch.stack([(judge(x) - honest).abs().amax(1) < 1e-4 for _ in range(30)]).float().mean()
        assert (0.3 < alike < 0.9) if differs else alike == 1, (name, alike)
