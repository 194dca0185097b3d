"""Small networks of a user, with habits that a reader of layers must bear; loaded as `module:model.networks:NAME`."""

import threading
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

CONFIG = {"input_size": (3, 32, 32), "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), "crop_pct": 1.0}


class Network(nn.Module):
    """States its preprocessing in timm's form."""

    pretrained_cfg = CONFIG


class ChannelsLast(Network):
    """(N, h, w, C) from the first layer to the pooling, with as many channels as columns."""

    def __init__(self) -> None:
        super().__init__()
        self.cut = nn.Unfold(4, stride=4)
        self.embed = nn.Linear(48, 12)
        self.mix = nn.Linear(12, 12)
        self.final = nn.LayerNorm(12)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        h, w = x.shape[2] // 4, x.shape[3] // 4
        x = self.embed(self.cut(x).transpose(1, 2)).unflatten(1, (h, w))
        x = self.final(x + self.mix(x).tanh())
        return self.head(x.mean(dim=(1, 2)))


class Shared(Network):
    """One block and one ReLU are called again and again, the ReLU at last on pooled features."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.block = nn.Conv2d(8, 8, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.relu(self.stem(x))
        for _ in range(3):
            x = x + self.block(x)
        return self.head(self.relu(x.mean(dim=(2, 3))))


class InPlace(Network):
    """What the batch norm returned is gone once the ReLU ran."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Sigmoid())
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.features(x)
        return self.head((x * self.gate(x)).mean(dim=(2, 3)))


class Pair(NamedTuple):
    """A layer's output that is no plain tuple."""

    features: torch.Tensor
    pooled: torch.Tensor


class Stage(nn.Module):
    """Returns its features in a container."""

    def __init__(self, container: str) -> None:
        super().__init__()
        self.container = container
        self.conv = nn.Conv2d(3, 8, 4, stride=4)

    def forward(self, x):
        x = self.conv(x).relu()
        pooled = x.mean(dim=(2, 3))
        return {"tuple": (x, pooled), "named": Pair(x, pooled), "dict": {"features": x}}[self.container]


class Containers(Network):
    """A stage whose output is a tuple, a named tuple or a dictionary."""

    def __init__(self, container: str) -> None:
        super().__init__()
        self.stage = Stage(container)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        output = self.stage(x)
        features = output["features"] if isinstance(output, dict) else output[0]
        return self.head(features.mean(dim=(2, 3)))


class ClassToken(Network):
    """A transformer in few lines: 5 tokens before 4 cells, which also could be 9 cells; attention as modules see it."""

    def __init__(self, width: int = 16, prefix: int = 5, patch: int = 16) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.tokens = nn.Parameter(torch.randn(1, prefix, width))
        self.blocks = nn.Sequential(*(Block(width) for _ in range(3)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        cells = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.tokens.expand(x.shape[0], -1, -1), cells], dim=1)
        return self.head(self.norm(self.blocks(x))[:, 0])


class Block(nn.Module):
    """Attention whose (N, 1, T, T) weights pass a module."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.dropout = nn.Dropout(0.1)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(self.norm1(x))[:, None].chunk(3, dim=-1)
        weights = self.dropout((q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(dim=-1))
        x = x + (weights @ v)[:, 0]
        return x + F.gelu(self.mlp(self.norm2(x)))


class OneForward(Network):
    """A transformer whose residual sums are in one forward, so that no module returns its stream."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, stride=8)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(3))
        self.attentions = nn.ModuleList(nn.Linear(16, 48) for _ in range(3))
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), self.patches(x).flatten(2).transpose(1, 2)], dim=1)
        for norm, attention in zip(self.norms, self.attentions, strict=True):
            q, k, v = attention(norm(x)).chunk(3, dim=-1)
            x = x + F.scaled_dot_product_attention(q, k, v)
        return self.head(x[:, 0])


class Returns(Network):
    """Logits in something else than a tensor."""

    def __init__(self, container: str) -> None:
        super().__init__()
        self.container = container
        self.features = nn.Conv2d(3, 8, 4, stride=4)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        logits = self.head(self.features(x).mean(dim=(2, 3)))
        return {"tuple": (logits, None), "dict": {"logits": logits}, "map": logits[:, :, None]}[self.container]


class Frozen(Network):
    """Gives no gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 8, 4, stride=4)
        self.head = nn.Linear(8, 5)

    @torch.no_grad()
    def forward(self, x):
        return self.head(self.features(x).mean(dim=(2, 3)))


class Threads(Network):
    """Its layer also runs in another thread meanwhile, as when two graphs share a model."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 8, 4, stride=4)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        y = self.features(x)
        other = threading.Thread(target=self.features, args=(x.detach()[:1],))
        other.start()
        other.join()
        return self.head(y.mean(dim=(2, 3)))


class Flat(Network):
    """Has no spatial extent."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * 32 * 32, 5)

    def forward(self, x):
        return self.head(x.flatten(1))


class Undecided(Shared):
    """Reads a value of the image to decide what to do."""

    def forward(self, x):
        return super().forward(x if x.mean() > 0 else x.flip(3))


class LabelledShared(Shared):
    """States its labels, one too few."""

    labels = ("a", "b", "c", "d")


def not_a_module():
    """A factory that is wrong."""
    return "network"
