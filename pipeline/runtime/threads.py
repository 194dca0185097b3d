"""One thread, as in a pool actor."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread, as in an actor: the number of threads changes the last bits of a convolution.

    And one of several threads waits for the others by spinning: beside a starting cluster a dry run takes ten times as
    long.

    Yields:
        Nothing.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
