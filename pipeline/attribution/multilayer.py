"""Several layers on one map: the weighted product or sum of one method's maps."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline import attribution
from pipeline.attribution.base import Attribution, Choose, Method, Needs, Traits, probe
from pipeline.errors import MethodError
from pipeline.model import LoadedModel
from pipeline.model.dry_run import ENOUGH_CELLS, Observation, observe
from pipeline.model.layers import choose as layer_named

Combine = Literal["product", "sum"]


class MultiLayer(Method):
    """Layer combination: Π_l m_l^w_l or Σ_l w_l m_l over the layers' maps m_l, each scaled to 0..1 by min and max.

    Maps are enlarged bilinearly to the finest layer's grid. Never negative; a product is zero wherever one layer is at
    its minimum. A constant map scales to zeros in a sum and to ones in a product, so that it takes no part.
    The weights are divided by their sum, which makes the product a weighted geometric mean.

    Cost: one run of the method for each layer; prediction and targets come from the first.

    Args:
        model: see `Method`; its own target layer is the last of the default layers.
        seed: of the job.
        method: key of `METHODS`, with maps at the layer's resolution.
        layers: dotted paths; None for those of `stages`.
        combine: `product` or `sum`.
        weights: one a layer, positive; None for equal ones.
        parameters: of the method.

    Raises:
        MethodError: a parameter is wrong, or no second layer is found and none is named.
        ModelError: a named layer does not exist.
    """

    traits = Traits(Needs.LAYER_GRADIENTS, "layers", True, "layer", "", "Rebuffi et al. 2020, section 3.2")

    def __init__(
        self,
        model: LoadedModel,
        *,
        seed: int = 0,
        method: str = "gradcam",
        layers: Sequence[str] | None = None,
        combine: Combine = "product",
        weights: Sequence[float] | None = None,
        parameters: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(model, seed=seed)
        seen, _ = observe(model.module, probe(model, 2))
        names = stages(model, seen) if layers is None else list(layers)
        shares = [1.0] * len(names) if weights is None else [float(w) for w in weights]
        _check(names, shares, method, combine)
        self.combine = combine
        self._shares = [share / sum(shares) for share in shares]
        why = f"one of the layers of multilayer {method}"
        found = [replace(model, layer=replace(layer_named(seen, name=name), why=why)) for name in names]
        self._methods = [attribution.create(method, one, seed=seed, **dict(parameters or {})) for one in found]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of one map: those of the finest layer."""
        return max((m.shape for m in self._methods), key=lambda shape: shape[0] * shape[1])

    def __call__(self, x: Tensor, choose: Choose, seeds: Tensor | None = None) -> Attribution:
        """See `Method.__call__`."""
        first = self._methods[0](x, choose, seeds)
        others = [method(x, lambda _: first.targets, seeds) for method in self._methods[1:]]
        maps = torch.stack([self._enlarged(found.maps) for found in (first, *others)])  # (L, N, k, h, w)
        weights = torch.tensor(self._shares, device=x.device).view(-1, 1, 1, 1, 1)
        if self.combine == "sum":
            return replace(first, maps=(weights * scaled(maps, constant=0.0)).sum(dim=0), check=None)
        return replace(first, maps=(scaled(maps, constant=1.0) ** weights).prod(dim=0), check=None)

    def _enlarged(self, maps: Tensor) -> Tensor:
        """(N, k, h, w) to the finest layer's grid."""
        return F.interpolate(maps, size=self.shape, mode="bilinear", align_corners=False)


def scaled(maps: Tensor, *, constant: float) -> Tensor:
    """(..., h, w) scaled to 0..1 by each map's min and max; a constant map becomes `constant`."""
    low, high = maps.amin(dim=(-2, -1), keepdim=True), maps.amax(dim=(-2, -1), keepdim=True)
    return torch.where(high > low, (maps - low) / (high - low), constant)


def stages(model: LoadedModel, seen: Sequence[Observation], count: int = 3) -> list[str]:
    """Layers to combine where none are named: feature maps that every path to the score passes, ending at the target.

    Args:
        model: whose target layer is the last one.
        seen: observations of its dry run.
        count: layers wanted, at most.

    Returns:
        The last such layer at each of the coarsest resolutions; where there is one resolution only, as in a ViT, layers
        evenly apart. From low to high.
    """
    layer = model.layer
    before = [o.name for o in seen].index(layer.name)
    stream = [o for o in seen[:before] if o.bottleneck and o.layout is not None and o.alive > ENOUGH_CELLS]
    last_at = {
        o.layout.grid: o.name for o in stream if o.layout is not None and o.layout.grid[0] > layer.layout.grid[0]
    }
    names = [last_at[grid] for grid in sorted(last_at, reverse=True)]
    if not names:
        names = [stream[len(stream) * part // count].name for part in range(1, count)] if stream else []
    return [*names[-(count - 1) :], layer.name]


def _check(names: Sequence[str], shares: Sequence[float], method: str, combine: str) -> None:
    if combine not in get_args(Combine):
        raise MethodError(f"combine must be one of {', '.join(get_args(Combine))}, found {combine!r}")
    if len(names) < 2 or len(shares) != len(names) or min(shares) <= 0:
        raise MethodError(
            f"multilayer needs two layers or more and one positive weight for each; found layers {list(names)} and "
            f"weights {list(shares)}; name others in its parameter layers"
        )
    known = attribution.METHODS.get(method)
    if method == "multilayer" or (known is not None and known.traits.resolution != "layer"):
        raise MethodError(f"multilayer combines maps of layers; method {method!r} does not look at the target layer")
