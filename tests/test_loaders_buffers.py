"""Memory of batches: used again once nobody refers to it, and never before."""

import gc
import threading

import torch

from fastich.loaders.buffers import MOST_FREE, Buffers


def test_memory_comes_back_when_the_last_view_is_gone():
    buffers = Buffers()
    batch = buffers.take((2, 3, 4))
    address = batch.data_ptr()
    view = batch.permute(2, 0, 1)[1]
    del batch
    gc.collect()
    assert buffers.take((2, 3, 4)).data_ptr() != address, "a view still needs it"
    gc.collect()
    del view
    gc.collect()
    addresses = {tensor.data_ptr() for tensor in [buffers.take((2, 3, 4)) for _ in range(2)]}
    assert address in addresses


def test_a_smaller_batch_fits_into_a_larger_block():
    buffers = Buffers()
    whole = buffers.take((8, 5))
    address = whole.data_ptr()
    del whole
    last = buffers.take((3, 5))
    assert (last.data_ptr(), last.shape) == (address, (3, 5))
    assert buffers.take((9, 5)).shape == (9, 5)


def test_what_was_written_stays_while_it_is_held():
    buffers = Buffers()
    held = [buffers.take((16,)).fill_(number) for number in range(2 * MOST_FREE)]
    assert [int(tensor[0]) for tensor in held] == list(range(2 * MOST_FREE))
    held.clear()
    gc.collect()
    assert len(buffers._free) == MOST_FREE


def test_threads_never_share_a_block():
    buffers, wrong = Buffers(), []

    def work(number: int) -> None:
        for _ in range(200):
            mine = buffers.take((64,)).fill_(number)
            if not torch.equal(mine, torch.full((64,), float(number))):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
