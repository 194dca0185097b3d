"""Small networks with random weights, and what binds them to raylens."""

import copy
from dataclasses import replace

import timm
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.model import LoadedModel, Preprocessing
from pipeline.model.dry_run import observe
from pipeline.model.layers import find_head, find_layer

CLASSES = 5


class ReluCnn(nn.Module):
    """Convolutions, batch norms, three spellings of ReLU, max-pooling, global pooling and a linear head.

    `steps` is the forward pass as a list, for references that go through it by hand.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.norm1 = nn.BatchNorm2d(6)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(2)
        self.conv3 = nn.Conv2d(8, 12, 3, padding=1)
        self.last = nn.ReLU()
        self.head = nn.Linear(12, CLASSES)

    @property
    def steps(self):
        """(kind, function) in order; kind is relu, maxpool or affine."""
        return [
            ("affine", self.conv1),
            ("affine", self.norm1),
            ("relu", self.act1),
            ("affine", self.conv2),
            ("affine", self.norm2),
            ("relu", F.relu),
            ("maxpool", self.pool),
            ("affine", self.conv3),
            ("relu", self.last),
            ("affine", lambda z: z.mean(dim=(2, 3))),
            ("affine", self.head),
        ]

    def forward(self, x):
        for _, step in self.steps:
            x = step(x)
        return x


class SmoothCnn(nn.Module):
    """GELU, SiLU in place, group and layer norms, a sigmoid gate and attention: all that the interpreter freezes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.group = nn.GroupNorm(2, 8)
        self.silu = nn.SiLU(inplace=True)
        self.mix = nn.Conv2d(8, 8, 3, padding=1)
        self.gate = nn.Conv2d(8, 8, 1)
        self.norm = nn.LayerNorm(8)
        self.qkv = nn.Linear(8, 24)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        x = self.silu(self.group(self.stem(x)))
        x = F.gelu(self.mix(x)) * self.gate(x.mean(dim=(2, 3), keepdim=True)).sigmoid()
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        q, k, v = self.qkv(tokens).chunk(3, dim=-1)
        tokens = tokens + F.scaled_dot_product_attention(q, k, v)
        return self.head(tokens.mean(dim=1))


class Product(nn.Module):
    """Multiplies features by features: not affine however it is frozen. No ReLU either."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        x = self.stem(x)
        return self.head((x * x).mean(dim=(2, 3)))


def randomised(network: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights and statistics, in evaluation mode."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            fan_in = max(1, parameter[0].numel())
            parameter.copy_(torch.randn(parameter.shape, generator=random) * (2 / fan_in) ** 0.5)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm):
                module.weight.copy_(torch.rand(module.weight.shape, generator=random) + 0.5)
                module.bias.copy_(torch.randn(module.bias.shape, generator=random) * 0.3)
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=random) * 0.3)
                module.running_var.copy_(torch.rand(module.running_var.shape, generator=random) + 0.5)
    return network.eval().requires_grad_(False)


def loaded(network: nn.Module, size: int = 32, layer: str | None = None) -> LoadedModel:
    """A network as the object that methods take."""
    preprocessing = Preprocessing(
        size=(size, size),
        resize=(size, size),
        resize_mode="squash",
        interpolation="bilinear",
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.25, 0.3),
    )
    target = find_layer(network, (size, size), 3, name=layer)
    seen, logits = observe(network, torch.zeros(2, 3, size, size))
    return LoadedModel(
        module=network,
        preprocessing=preprocessing,
        labels=tuple(str(i) for i in range(logits.shape[1])),
        layer=target,
        head=find_head(seen, logits),
        classes=logits.shape[1],
        weights_sha256="0" * 64,
        source=type(network).__name__,
        arguments={},
    )


def relu_cnn(layer: str | None = None) -> LoadedModel:
    return loaded(randomised(ReluCnn()), layer=layer)


def smooth_cnn() -> LoadedModel:
    return loaded(randomised(SmoothCnn()), layer="mix")


def tiny_vit() -> LoadedModel:
    """timm's own test network: blocks, heads and tokens as in its large ones."""
    torch.manual_seed(0)
    network = timm.create_model("test_vit", img_size=64, num_classes=CLASSES)
    with torch.no_grad():
        network.cls_token.normal_()
        network.head.weight.normal_()
    return loaded(network.eval().requires_grad_(False), size=64)


def vit(name: str = "vit_tiny_patch16_224", **changes) -> LoadedModel:
    """A plain vision transformer of two narrow blocks, or as changed."""
    torch.manual_seed(0)
    small = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 3, "num_classes": CLASSES}
    network = timm.create_model(name, **{**small, **changes})
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
    return loaded(network.eval().requires_grad_(False))


def residual_net(layer: str | None = None) -> LoadedModel:
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=CLASSES)
    return loaded(randomised(network), size=64, layer=layer)


def images(model: LoadedModel, count: int = 3, seed: int = 1) -> torch.Tensor:
    """(count, 3, H, W) float64 noise with some structure."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, *model.preprocessing.size, generator=random, dtype=torch.float64)
    return x + F.avg_pool2d(x, 7, stride=1, padding=3) * 4


def double(model: LoadedModel) -> LoadedModel:
    """The same model in float64."""
    return replace(model, module=copy.deepcopy(model.module).double())


def second(logits: torch.Tensor) -> torch.Tensor:
    """The second best class: (N, 1)."""
    return logits.topk(2, dim=1).indices[:, 1:]


def two(logits: torch.Tensor) -> torch.Tensor:
    """The two best classes: (N, 2)."""
    return logits.topk(2, dim=1).indices


def state(model: LoadedModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in copy.deepcopy(model.module).state_dict().items()}
