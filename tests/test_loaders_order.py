import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastich.labels import ANY, LABELS
from fastich.loaders.order import Order, balanced_weights, group_order, labelled


def order(num_rows: int = 20, **changes) -> Order:
    rows, labels = np.arange(num_rows) * 3, np.zeros((num_rows, 6), np.int8)
    return Order(**{"rows": rows, "labels": labels, "batch_size": 4} | changes)


def rows_of(order: Order, epoch: int = 0, start: int = 0) -> list[list[int]]:
    return [step.rows.tolist() for step in order.steps(epoch, start)]


def test_unshuffled_order_is_that_of_the_reader():
    assert np.concatenate(rows_of(order())).tolist() == (np.arange(20) * 3).tolist()
    assert rows_of(order(), epoch=0) == rows_of(order(), epoch=9)


def test_shuffled_order_depends_on_seed_and_epoch_alone():
    first = rows_of(order(shuffle=True, seed=5), epoch=2)
    assert first == rows_of(order(shuffle=True, seed=5), epoch=2)
    assert first != rows_of(order(shuffle=True, seed=5), epoch=3)
    assert first != rows_of(order(shuffle=True, seed=6), epoch=2)
    assert sorted(np.concatenate(first)) == (np.arange(20) * 3).tolist()


def test_shuffled_order_is_the_one_of_this_release():
    """A change here breaks resuming runs that an earlier release began."""
    assert order(8, shuffle=True, seed=1).epoch_rows(2).tolist() == [18, 0, 21, 15, 3, 12, 9, 6]


@settings(deadline=None)
@given(
    num_rows=st.integers(1, 60),
    batch_size=st.integers(1, 9),
    world_size=st.integers(1, 5),
    drop_last=st.booleans(),
    shuffle=st.booleans(),
)
def test_ranks_make_equal_steps_and_cover_the_split(num_rows, batch_size, world_size, drop_last, shuffle):
    ranks = [
        order(num_rows, batch_size=batch_size, world_size=world_size, rank=rank, drop_last=drop_last, shuffle=shuffle)
        for rank in range(world_size)
    ]
    steps = [list(one.steps(3)) for one in ranks]
    sizes = [[len(step.rows) for step in one] for one in steps]
    assert all(one == sizes[0] for one in sizes)
    assert all(one.num_steps == len(sizes[0]) for one in ranks)
    positions = sorted(position for one in steps for step in one for position in step.positions.tolist())
    assert positions == list(range(ranks[0].num_positions))
    rows = [row for one in steps for step in one for row in step.rows.tolist()]
    if drop_last:
        assert all(size == batch_size for size in sizes[0])
        assert len(rows) == len(set(rows)) > num_rows - batch_size * world_size
    else:
        assert set(rows) == set(ranks[0].rows.tolist())
        assert len(rows) < num_rows + world_size


def test_ranks_are_disjoint_where_the_split_divides():
    rows = [set(np.concatenate(rows_of(order(shuffle=True, rank=rank, world_size=2)))) for rank in range(2)]
    assert not rows[0] & rows[1]


def test_resuming_gives_the_tail_of_the_epoch():
    whole = order(23, shuffle=True, batch_size=4)
    for start in range(8):
        assert rows_of(whole, 1, start) == rows_of(whole, 1)[start:]


def test_balanced_kinds_share_equally():
    labels = np.zeros((1000, 6), np.int8)
    labels[:10, [0, 4, ANY]] = 1  # epidural is rarer than subdural, so it names these rows
    labels[10:110, [4, ANY]] = 1
    labels[110:120, ANY] = 1  # "any" alone
    weights = balanced_weights(labels)
    assert weights.sum() == pytest.approx(1)
    shares = [weights[part].sum() for part in (slice(0, 10), slice(10, 110), slice(110, 120), slice(120, None))]
    assert shares == pytest.approx([0.25] * 4)
    drawn = order(1000, labels=labels, balanced=True).epoch_rows(0) // 3
    assert len(drawn) == 1000
    assert 180 < (drawn < 10).sum() < 320


def test_balanced_weights_take_any_label_table():
    assert balanced_weights(np.zeros((4, 6), np.int8)) == pytest.approx([0.25] * 4)
    assert balanced_weights(np.full((2, 6), -1, np.int8)) == pytest.approx([0.5] * 2)


def test_labelled_rows_are_those_with_known_labels():
    labels = np.zeros((3, len(LABELS)), np.int8)
    labels[1] = -1
    assert labelled(labels).tolist() == [True, False, True]


def test_groups_come_as_they_were_put_together():
    groups, places = [np.array([4, 3]), np.array([8]), np.array([0, 1, 2])], np.arange(9) // 3
    made = group_order(groups, np.zeros((9, 6), np.int8), places)
    assert (made.num_steps, made.batch_size) == (3, 3)
    for epoch in (0, 5):
        steps = list(made.steps(epoch))
        assert [step.rows.tolist() for step in steps] == [[4, 3], [8], [0, 1, 2]]
        assert [step.positions.tolist() for step in steps] == [[1, 1], [2], [0, 0, 0]]
    assert [step.rows.tolist() for step in made.steps(0, 2)] == [[0, 1, 2]]
