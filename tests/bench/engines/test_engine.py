"""What a job takes of a machine, and how many fit."""

from __future__ import annotations

import pytest

from bench.contracts.errors import InputError
from bench.engines.engine import Resources, bytes_of


@pytest.mark.parametrize(
    ("resources", "machine", "fit"),
    [
        (Resources(), (4, 0, 0), 4),
        (Resources(cpus=3), (8, 0, 0), 2),
        (Resources(cpus=0.1), (0.3, 0, 0), 3),  # 0.3 / 0.1 is a little below 3
        (Resources(gpus=1), (8, 2, 0), 2),
        (Resources(gpus=1), (8, 0, 0), 0),
        (Resources(gpus=0.25), (64, 2, 0), 8),
        (Resources(gpus=0.3), (64, 2, 0), 6),  # three on each, although 2 / 0.3 is more than 6
        (Resources(gpus=0.6), (64, 3, 0), 3),
        (Resources(gpus=2), (64, 5, 0), 2),
        (Resources(memory=3), (8, 0, 10), 3),
        (Resources(cpus=2, gpus=0.5, memory=4), (16, 1, 100), 2),
        (Resources(memory=11), (8, 0, 10), 0),
    ],
)
def test_as_many_jobs_fit_as_the_scarcest_allows(
    resources: Resources, machine: tuple[float, float, float], fit: int
) -> None:
    assert resources.slots(*machine) == fit


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cpus": 0}, "CPUs of a job: expected a number above 0, got 0"),
        ({"cpus": -1}, "CPUs of a job: expected a number above 0, got -1"),
        ({"gpus": -0.5}, "GPUs of a job: expected a share up to 1, or a whole number, got -0.5"),
        ({"gpus": 1.5}, "GPUs of a job: expected a share up to 1, or a whole number, got 1.5"),
    ],
)
def test_what_no_machine_can_give_is_refused(fields: dict[str, float], message: str) -> None:
    with pytest.raises(InputError) as refused:
        Resources(**fields)  # type: ignore[arg-type]
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1000", 1000),
        ("4GB", 4 * 10**9),
        ("4GiB", 4 * 2**30),
        ("4g", 4 * 10**9),
        ("4Gi", 4 * 2**30),
        (" 500 MB ", 500 * 10**6),
        ("1.5k", 1500),
        ("2 tib", 2 * 2**40),
        ("7b", 7),
    ],
)
def test_memory_is_read_in_powers_of_ten_and_of_two(text: str, size: int) -> None:
    assert bytes_of(text) == size


@pytest.mark.parametrize("text", ["", "GB", "4 GX", "-4GB", "4,5GB", "1e9", "4iB", "4GBB"])
def test_what_is_no_memory_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="expected a number of bytes such as 4GB, 4GiB or 500MB"):
        bytes_of(text)
