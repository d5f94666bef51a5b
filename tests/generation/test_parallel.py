"""Jobs side by side: their order, their threads, their errors."""

import pytest
import torch

from vader.generation.parallel import side_by_side


@pytest.mark.parametrize("threads", (1, 3))
def test_results_keep_their_order_and_each_job_has_one_thread(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert list(side_by_side(lambda n: (n, torch.get_num_threads()), range(20))) == [(n, 1) for n in range(20)]
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_what_a_job_raises_comes_out_and_the_threads_come_back():
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError):
        list(side_by_side(lambda n: 1 / n, [1, 0, 2]))
    assert torch.get_num_threads() == before


def test_jobs_for_an_accelerator_are_done_one_by_one_with_all_threads():
    before = torch.get_num_threads()
    assert list(side_by_side(lambda n: torch.get_num_threads(), range(2), "cuda")) == [before, before]
