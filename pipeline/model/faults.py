"""Faults of the machine that a network runs on: they say nothing of the network, so nothing may be concluded of it."""

import torch

CPU_ALLOCATOR = "DefaultCPUAllocator"
"""Names itself in the message where the machine's memory does not suffice; torch has no class for that."""


def of_the_machine(error: Exception) -> bool:
    """Whether a network failed because of what it runs on.

    Args:
        error: that a pass through the network raised.

    Returns:
        True for memory that does not suffice, of any device, and for a device that failed: such errors must propagate.
    """
    return isinstance(error, (torch.OutOfMemoryError, torch.AcceleratorError, MemoryError)) or (
        isinstance(error, RuntimeError) and CPU_ALLOCATOR in str(error)
    )
