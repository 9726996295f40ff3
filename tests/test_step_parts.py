import pytest

from fastich.training.step_parts import PARTS, Interval, lines, parts_on_cpu, parts_on_gpu, table


def between(name: str, begin_s: float, end_s: float) -> Interval:
    return Interval(name=name, begin_s=begin_s, end_s=end_s)


def test_parts_of_a_step_on_one_thread_are_its_wall_time() -> None:
    step = [between("data", 1, 2), between("host-to-device", 2, 2), between("forward", 2, 4), between("backward", 4, 8)]
    found = parts_on_cpu([*step, between("optimiser", 8, 9)], 9.5)
    assert found == {"data": 1, "host-to-device": 0, "forward": 2, "backward": 4, "optimiser": 1, "rest": 0.5}


def test_replicas_share_their_wall_time_as_their_threads_spent_it() -> None:
    threads = [
        between("forward", 1, 3), between("backward", 3, 6), between("forward", 1, 2), between("backward", 4, 6)
    ]  # fmt: skip
    found = parts_on_cpu([between("data", 0, 1), *threads, between("optimiser", 6, 7)], 7)
    assert found["forward"] == pytest.approx(5 * 3 / 8)
    assert found["backward"] == pytest.approx(5 * 5 / 8)
    assert sum(found.values()) == pytest.approx(7)
    assert found["rest"] == pytest.approx(0)


@pytest.mark.parametrize(
    ("copy", "data", "copied"),
    [((10, 13), 1, 3), ((4, 8), 4, 0), ((8, 12), 2, 2), ((13, 15), 3, 1), ((20, 21), 4, 0)],
    ids=["in the gap", "before it", "from before into it", "over its end", "after it"],
)
def test_a_copy_costs_a_gpu_what_falls_into_the_gap(copy: tuple[float, float], data: float, copied: float) -> None:
    step = [
        between("data", 10, 10.5), between("host-to-device", *copy), between("forward", 14, 16),
        between("backward", 16, 20), between("optimiser", 20, 21),
    ]  # fmt: skip
    found = parts_on_gpu(step, 21.5)
    assert (found["data"], found["host-to-device"]) == (data, copied)
    assert found["rest"] == pytest.approx(0.5)
    assert sum(found.values()) == pytest.approx(11.5)


def test_table_gives_means_and_shares_that_add_up() -> None:
    one = dict.fromkeys(PARTS, 0.1)
    made = table([one, one | {"data": 0.3}])
    assert made["steps"] == 2
    assert made["step_ms"] == 700
    assert made["ms"]["data"] == 200
    assert sum(made["share"].values()) == pytest.approx(1, abs=1e-4)
    assert "  waiting for data    28.6%    200.00 ms" in lines(made)
