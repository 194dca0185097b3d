"""The part above a layer, replayed: equal to the whole network, and used wherever it can be."""

import pytest
import torch
from attribution.networks import images, loaded, randomised, relu_cnn, residual_net, tiny_vit
from torch import nn

from pipeline.attribution.base import forward_to_layer
from pipeline.attribution.tape import UpperPart

torch.set_num_threads(1)


class ReadsValues(nn.Module):
    """Decides in Python by a value that depends on the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 8, stride=8)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x.mean(dim=(2, 3))) * (2.0 if float(x[-1].mean()) > 0 else 1.0)


class WritesBelow(nn.Module):
    """Adds the layer's output to a tensor from below it, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 8, stride=8)
        self.side = nn.Conv2d(4, 4, 1)
        self.branch = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.stem(x)
        below = self.side(x)
        below += self.branch(x)
        return self.head(below.relu_().mean(dim=(2, 3)))


class Concatenates(WritesBelow):
    """Joins the layer's output with a tensor from below it along the channels; batch 1 does not broadcast there."""

    def forward(self, x):
        x = self.stem(x)
        return self.head((torch.cat([x, self.branch(x)], dim=1)[:, 2:6]).mean(dim=(2, 3)))


def edited(output: torch.Tensor, size: int, seed: int) -> torch.Tensor:
    """A batch of outputs: the true one and random changes of it."""
    batch = output.repeat(size, *[1] * (output.ndim - 1))
    noise = torch.randn(batch.shape, generator=torch.Generator().manual_seed(seed))
    noise[0] = 0
    return batch + noise


def expected(model, x, output):
    def replace(_module, _args, _found):
        return output.clone()

    handle = model.module.get_submodule(model.layer.name).register_forward_hook(replace)
    try:
        with torch.no_grad():
            return model.module(x.expand(len(output), -1, -1, -1))
    finally:
        handle.remove()


CASES = [
    (relu_cnn(), False),
    (relu_cnn("act1"), False),
    (residual_net("layer2"), False),
    (residual_net("layer3.0.conv2"), False),
    (tiny_vit(), False),
    (loaded(randomised(ReadsValues()), layer="stem"), True),
    (loaded(randomised(WritesBelow()), layer="branch"), True),
    (loaded(randomised(Concatenates()), layer="branch"), True),
]


@pytest.mark.parametrize(("model", "whole"), CASES, ids=lambda v: getattr(getattr(v, "layer", None), "name", None))
def test_replay_equals_the_whole_network(model, whole):
    x = images(model, 1).float()
    capture = forward_to_layer(model, x, gradients=False)
    upper = UpperPart(model, x, capture.logits[0])
    for seed in range(3):
        output = edited(capture.output, 4, seed)
        given = output.clone()
        found = upper(output)
        torch.testing.assert_close(found, expected(model, x, given), rtol=1e-4, atol=1e-4)
        assert torch.equal(output, given)
    assert upper.whole is whole
    torch.testing.assert_close(
        upper(edited(capture.output, 2, 9)), expected(model, x, edited(capture.output, 2, 9)), rtol=1e-4, atol=1e-4
    )


def test_the_part_below_does_not_run_again():
    model = residual_net()
    x = images(model, 1).float()
    capture = forward_to_layer(model, x, gradients=False)
    calls = []
    first = next(m for m in model.module.modules() if isinstance(m, nn.Conv2d))
    handle = first.register_forward_hook(lambda *_: calls.append(1))
    try:
        upper = UpperPart(model, x, capture.logits[0])
        for seed in range(4):
            upper(edited(capture.output, 4, seed))
    finally:
        handle.remove()
    assert len(calls) == 1


class FailsOnce(nn.Module):
    """Raises in the first call after it was armed, as a device does whose memory another process holds for a moment."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 8, stride=8)
        self.head = nn.Linear(4, 3)
        self.error = error
        self.armed = False

    def forward(self, x):
        x = self.stem(x)
        if self.armed:
            self.armed = False
            raise self.error
        return self.head(x.mean(dim=(2, 3)))


@pytest.mark.parametrize(
    ("error", "told"), [(torch.OutOfMemoryError("CUDA out of memory"), True), (RuntimeError("shapes"), False)]
)
def test_memory_that_does_not_suffice_is_not_taken_for_a_network_that_cannot_be_replayed(error, told):
    model = loaded(randomised(FailsOnce(error)), layer="stem")
    x = images(model, 1).float()
    capture = forward_to_layer(model, x, gradients=False)
    upper = UpperPart(model, x, capture.logits[0])
    model.module.armed = True
    if told:
        with pytest.raises(torch.OutOfMemoryError):
            upper(edited(capture.output, 4, 0))
        assert not upper.whole
    else:
        upper(edited(capture.output, 4, 0))
        assert upper.whole
