"""A CNN small enough to train in a minute on a CPU, and with a last stage fine enough for a Grad-CAM to be read."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

IMAGE_SIZE = 96
MEAN = (0.5, 0.5, 0.5)
STD = (0.5, 0.5, 0.5)
TARGET_LAYER = "features.3"
WIDTHS = (16, 32, 64, 64)
STRIDES = (2, 2, 2, 1)


class ConvBlock(nn.Module):
    """3 x 3 convolution, batch normalisation, ReLU: (N, C, H, W) to (N, C', H / stride, W / stride)."""

    def __init__(self, channels_in: int, channels_out: int, *, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels_out)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Applies the block."""
        out: Tensor = self.act(self.norm(self.conv(x)))
        return out


class TinyCNN(nn.Module):
    """Four ConvBlocks, global average pooling and a linear head.

    A 96 px input gives 12 x 12 at `TARGET_LAYER`, with a receptive field of 31 px.

    Args:
        num_classes: number of logits.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        channels = (3, *WIDTHS[:-1])
        blocks = zip(channels, WIDTHS, STRIDES, strict=True)
        self.features = nn.Sequential(*(ConvBlock(a, b, stride=stride) for a, b, stride in blocks))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(WIDTHS[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps normalised images (N, 3, H, W) float32 to logits (N, num_classes)."""
        out: Tensor = self.head(self.pool(self.features(x)).flatten(1))
        return out


def tiny_cnn(num_classes: int = 4) -> nn.Module:
    """Builds an untrained TinyCNN: the model source `module:pipeline.bias.tinycnn:tiny_cnn`."""
    return TinyCNN(num_classes)


def preprocess(images: Tensor) -> Tensor:
    """Normalises images (N, H, W, 3) uint8 RGB to (N, 3, H, W) float32 by MEAN and STD."""
    scaled = images.permute(0, 3, 1, 2).to(torch.float32).div(255.0)
    return (scaled - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def train(
    images: Tensor,
    labels: Tensor,
    *,
    num_classes: int = 4,
    epochs: int = 8,
    batch_size: int = 32,
    learning_rate: float = 4e-3,
    seed: int = 0,
    on_epoch: Callable[[int, float, float], None] | None = None,
) -> TinyCNN:
    """Trains a TinyCNN from scratch: AdamW, one-cycle learning rate, random horizontal flips.

    Weights are equal bit by bit for equal arguments on one torch version, CPU kind and number of threads. The
    global random state is left as it was.

    Args:
        images: (N, H, W, 3) uint8 RGB.
        labels: (N,) int64 in [0, num_classes).
        num_classes: number of logits.
        epochs: passes over the data.
        batch_size: images a step; a last batch of one image is left out, for batch normalisation.
        learning_rate: peak of the cycle.
        seed: of initial weights, order and flips.
        on_epoch: called as on_epoch(epoch, loss, accuracy): epoch from 1, mean training loss in nats, and training
            accuracy in [0, 1], both taken during the epoch.

    Returns:
        The model in evaluation mode.

    Raises:
        ValueError: images and labels differ in number, or there are fewer than two.
    """
    if len(images) != len(labels) or len(images) < 2:
        raise ValueError(f"expected 2 or more images, a label each, found {len(images)} and {len(labels)} labels")
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TinyCNN(num_classes).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=1e-3)
    steps = epochs * -(-len(images) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=learning_rate, total_steps=steps)
    for epoch in range(1, epochs + 1):
        loss_sum, correct, seen = 0.0, 0, 0
        for index in torch.split(torch.randperm(len(images), generator=generator), batch_size):
            if len(index) > 1:
                loss, hits = _step(model, optimizer, _flip(preprocess(images[index]), generator), labels[index])
                loss_sum, correct, seen = loss_sum + loss * len(index), correct + hits, seen + len(index)
            schedule.step()
        if on_epoch is not None:
            on_epoch(epoch, loss_sum / seen, correct / seen)
    return model.eval()


def save(model: nn.Module, path: Path) -> None:
    """Writes the weights as safetensors, replacing a file that is there."""
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)


def load(path: Path) -> TinyCNN:
    """Reads weights that `save` wrote; the head's rows say how many classes. Returns it in evaluation mode."""
    weights = load_file(path)
    model = TinyCNN(len(weights["head.weight"]))
    model.load_state_dict(weights)
    return model.eval()


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Tensor, labels: Tensor) -> tuple[float, int]:
    """Takes one optimiser step and returns the batch's mean loss and number of correct predictions before it."""
    logits = model(batch)
    loss = functional.cross_entropy(logits, labels)
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    optimizer.step()
    return loss.item(), int((logits.argmax(1) == labels).sum())


def _flip(batch: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrors each image (N, 3, H, W) left to right with probability one half."""
    mirrored = torch.rand(len(batch), generator=generator) < 0.5
    return torch.where(mirrored.view(-1, 1, 1, 1), batch.flip(3), batch)
