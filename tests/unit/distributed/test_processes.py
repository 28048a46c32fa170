"""How several processes share items and put results together; the real exchange is in tests/distributed."""

import pytest

from llm_unlearn.distributed.processes import ALONE, Processes
from llm_unlearn.errors import InputError

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(("n", "count"), [(0, 3), (1, 3), (2, 3), (3, 3), (7, 3), (8, 2), (5, 1)])
def test_all_get_as_many_items_and_together_every_one(n, count):
    shares = [Processes(rank, count).share(range(n)) for rank in range(count)]
    assert len({len(share) for share in shares}) == 1
    assert {item for share in shares for item in share} == set(range(n))
    assert len(shares[0]) == -(-n // count)  # no more than needed


def test_one_process_has_all_items_in_their_order_and_its_own_results():
    assert ALONE.share([3, 1, 2]) == [3, 1, 2]
    assert ALONE.merged("mine") == ["mine"]
    assert ALONE.from_main("mine") == "mine"
    assert ALONE.any(True) and not ALONE.any(False)
    assert ALONE.is_main and not Processes(1, 2).is_main
    assert Processes.current() == Processes.start() == ALONE


def test_rows_of_a_step_are_dealt_out_evenly_or_refused():
    assert Processes(1, 4).part_of(8, "train.batch_size") == 2
    with pytest.raises(InputError, match=r"^recipe\.train\.batch_size: 6 rows.* 4 processes"):
        Processes(0, 4).part_of(6, "train.batch_size")
