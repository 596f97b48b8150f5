import gc

import torch

from orch_core.dataplane.memory import Shelf


def test_memory_comes_back_when_its_last_tensor_is_gone() -> None:
    shelf = Shelf()
    tensor = shelf.empty(1 << 20, torch.float32)
    address, view = tensor.data_ptr(), tensor[5:10]
    del tensor
    assert shelf.empty(1 << 20, torch.float32).data_ptr() != address, "a view still uses it"
    del view
    gc.collect()
    again = {shelf.empty(1 << 20, torch.float32).data_ptr() for _ in range(1)}
    assert len(again) == 1
    held = [shelf.empty(1 << 20, torch.float32) for _ in range(2)]
    assert address in {tensor.data_ptr() for tensor in held}


def test_tensors_are_aligned_shaped_and_separate() -> None:
    shelf = Shelf()
    tensors = [shelf.empty(shape, torch.float64) for shape in ((), (0, 3), (5,), (700, 300), (700, 300))]
    assert [tuple(tensor.shape) for tensor in tensors] == [(), (0, 3), (5,), (700, 300), (700, 300)]
    assert all(tensor.data_ptr() % 64 == 0 and tensor.is_contiguous() for tensor in tensors)
    tensors[3].fill_(1)
    tensors[4].fill_(2)
    assert bool((tensors[3] == 1).all())


def test_a_shelf_keeps_a_bounded_number() -> None:
    shelf = Shelf(kept_per_size=2)
    held = [shelf.empty(1 << 20, torch.float32) for _ in range(5)]
    del held
    gc.collect()
    assert [len(blocks) for blocks in shelf._free.values()] == [2]
