"""A file that fixes its batch, where the machine fails while it is found out whether the batch can be freed."""

from pathlib import Path

import pytest
import torch
from model.onnx.graphs import SIZE, graph, save
from torch import nn

from pipeline.model.onnx import file as onnx_file
from pipeline.model.onnx.batch import freed_network
from pipeline.model.onnx.signature import read_signature


class Failing(nn.Module):
    """The fixed network on a machine that has a fault."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise self.error


def test_only_the_network_s_own_failure_means_that_it_cannot_be_freed(tmp_path: Path) -> None:
    file = onnx_file.read(save(graph(batch=1), tmp_path))
    signature = read_signature(file)
    assert freed_network(file, signature, (SIZE, SIZE), Failing(RuntimeError("shapes do not fit"))) is None
    with pytest.raises(torch.OutOfMemoryError):
        freed_network(file, signature, (SIZE, SIZE), Failing(torch.OutOfMemoryError("CUDA out of memory")))
