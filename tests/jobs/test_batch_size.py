"""How the size of a batch follows from measured times."""

import pytest

from jobs.rendering.batch_size import AUTO, BatchSize, parts_of, settled


def grown(seconds_of, *, most=8, clips=60, compile_s=0.0, asked=AUTO) -> tuple[BatchSize, list[int]]:
    """Renders clips whose seconds are a function of the batch's size; the first batch of a size compiles."""
    batch, sizes = BatchSize(asked=asked, most=most), []
    while clips:
        size = batch.next_size(clips)
        first = size not in sizes
        sizes.append(size)
        batch.measured(size, seconds_of(size) + (compile_s if first else 0), compile_s=compile_s if first else 0.0)
        clips -= size
    return batch, sizes


def test_a_batch_grows_as_long_as_its_clips_get_faster():
    batch, sizes = grown({1: 1.0, 2: 0.7, 4: 0.55, 8: 0.5}.__getitem__, clips=31)
    assert sizes == [1, 2, 4, 8, 8, 8]
    assert batch.size == 8


def test_it_goes_back_where_a_larger_one_gains_less_than_a_twentieth():
    batch, sizes = grown({1: 1.0, 2: 0.7, 4: 0.68}.__getitem__, clips=13)
    assert sizes == [1, 2, 4, 2, 2, 2]
    assert batch.size == 2
    assert grown({1: 1.0, 2: 0.96}.__getitem__, clips=6)[1] == [1, 2, 1, 1, 1]


def test_batches_that_compiled_do_not_count_so_each_size_is_rendered_twice_before_it_is_judged():
    _, sizes = grown({1: 1.0, 2: 0.7, 4: 0.9}.__getitem__, compile_s=3.0, clips=60)
    assert sizes[:8] == [1, 1, 2, 2, 4, 4, 2, 2]
    assert set(sizes[8:]) == {2}


def test_no_size_is_tried_whose_compiling_the_clips_that_are_left_would_not_repay():
    assert grown({1: 1.0, 2: 0.5}.__getitem__, compile_s=3.0, clips=31)[1] == [1] * 31
    assert 2 in grown({1: 1.0, 2: 0.5}.__getitem__, compile_s=3.0, clips=33)[1]


def test_a_size_that_is_asked_for_is_taken_and_memory_and_the_family_bound_any():
    assert grown({3: 1.0, 2: 1.0, 1: 1.0}.__getitem__, asked=3, clips=8)[1] == [3, 3, 2]
    assert grown({1: 1.0}.__getitem__, asked=4, most=1, clips=3)[1] == [1, 1, 1]
    assert grown({1: 1.0, 2: 0.5}.__getitem__, most=2, clips=5)[1] == [1, 2, 2]
    batch = BatchSize(asked=6, most=8)
    batch.most = 5
    assert batch.next_size(20) == 4


def test_a_size_that_broke_is_not_tried_again():
    batch, _ = grown({1: 1.0, 2: 0.7, 4: 0.5}.__getitem__, most=4, clips=7)
    batch.broke(4)
    assert [batch.next_size(20), batch.most] == [2, 2]
    batch.broke(2)
    assert batch.next_size(20) == 1


@pytest.mark.parametrize(
    ("clips", "own", "parts"), [(7, 1, [4, 2, 1]), (3, 3, [3]), (5, 3, [4, 1]), (8, 0, [8]), (1, 4, [1])]
)
def test_a_rest_is_made_of_sizes_that_were_rendered_before(clips, own, parts):
    assert parts_of(clips, own=own) == parts


def test_settled_seconds_leave_a_warm_up_out():
    assert settled(["a", "b", "a", "b", "a"], [9.0, 1.0, 2.0, 3.0, 2.0]) == 3 * 2.0 + 2 * 2.0
