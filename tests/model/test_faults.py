"""Which errors of a pass are the machine's, by real ones where they can be had."""

import pytest
import torch

from pipeline.model.faults import of_the_machine


def test_memory_that_does_not_suffice_is_the_machine_s() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert of_the_machine(caught.value)
    assert of_the_machine(torch.OutOfMemoryError("CUDA out of memory"))


def test_shapes_that_do_not_fit_are_the_network_s() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.zeros(2, 3) @ torch.zeros(2, 3)
    assert not of_the_machine(caught.value)
    assert not of_the_machine(ValueError("DefaultCPUAllocator: can't allocate memory"))
