"""Randomness comes from names."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from bench.contracts.seeding import derive_seed, generator, seeded


def test_a_seed_depends_on_every_part_and_on_their_borders() -> None:
    seeds = {
        derive_seed(1, "ours", "pgd", 3),
        derive_seed(2, "ours", "pgd", 3),
        derive_seed(1, "none", "pgd", 3),
        derive_seed(1, "ours", "bpda", 3),
        derive_seed(1, "ours", "pgd", 4),
        derive_seed(1, "our", "spgd", 3),
        derive_seed(1, "ours", "pgd"),
        derive_seed(1, "ourspgd", 3),
    }
    assert len(seeds) == 8
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_seed_is_the_same_in_every_process_and_version() -> None:
    assert derive_seed(1, "ours", "pgd", 3, "report") == 5074406474388131469


def test_generators_of_the_same_name_draw_the_same() -> None:
    assert torch.equal(torch.rand(5, generator=generator("a", 1)), torch.rand(5, generator=generator("a", 1)))
    assert not torch.equal(torch.rand(5, generator=generator("a", 1)), torch.rand(5, generator=generator("a", 2)))


def _draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002


def test_seeded_fixes_all_three_global_generators() -> None:
    random.seed(0)
    with seeded("a"):
        first = _draw()
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    with seeded("a"):
        second = _draw()
    with seeded("b"):
        third = _draw()
    assert first == second
    assert all(a != b for a, b in zip(first, third, strict=True))


def test_seeded_puts_the_states_back_even_after_an_error() -> None:
    def states() -> tuple[object, ...]:
        return random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist()  # type: ignore[index,union-attr]  # noqa: NPY002

    before = states()
    with pytest.raises(ArithmeticError), seeded("a"):
        _draw()
        raise ArithmeticError
    assert states() == before


def test_seeded_nests() -> None:
    with seeded("outer"):
        expected = [_draw(), _draw()]
    with seeded("outer"):
        first = _draw()
        with seeded("inner"):
            _draw()
        assert [first, _draw()] == expected


def test_without_an_accelerator_seeding_leaves_no_note_of_the_call_behind() -> None:
    if torch.accelerator.is_available():
        pytest.skip("torch has somebody to seed")
    waiting = len(torch.cuda._queued_calls)
    for name in "abc":
        with seeded(name):
            pass
    assert len(torch.cuda._queued_calls) == waiting
