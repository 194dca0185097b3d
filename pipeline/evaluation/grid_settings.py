"""The three settings in which a network looks at a grid: GridPG, DiFull and DiPart (Rao et al. 2022, section 3).

Each turns a model into a model of grids, which every method explains as it explains any other. Where heads are
disconnected, only one cell reaches the score: what a map shows outside that cell is wrong by construction.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.attribution import Attribution, Choose
from pipeline.attribution.base import hooked
from pipeline.errors import MethodError, ModelError
from pipeline.evaluation.grids import CELLS, CORNERS, SIDE, cells_of, localisation_score, montage
from pipeline.model import Layout, LoadedModel
from pipeline.model.dry_run import noise, observe, tensor_of, with_tensor
from pipeline.model.layers import TargetLayer, choose, find_layer


class Disconnected(nn.Module):
    """DiFull: each cell goes through the network alone, and the score is that of one cell.

    The target layer's outputs of the cells are put together at `layer`, so that methods see the map of the whole grid,
    and are taken apart again.

    Args:
        network: of single images; shared and left as it was.
        target: its target layer.
        cell: whose score is returned.
    """

    def __init__(self, network: nn.Module, target: TargetLayer, cell: int) -> None:
        super().__init__()
        self.training = network.training
        self.network = network
        self.layer = nn.Identity()
        self.target = target
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, 2 H, 2 W) grids to (N, K) logits of the cell."""
        cells = cells_of(x).flatten(0, 1)
        with hooked(self.network.get_submodule(self.target.name), self._as_grid):
            logits: Tensor = self.network(cells)
        return logits.view(-1, CELLS, logits.shape[1])[:, self.cell]

    def _as_grid(self, _module: nn.Module, _arguments: Any, output: Any) -> Any:
        """Shows the whole grid to whoever watches `layer`, and hands on what comes back."""
        tensor = tensor_of(output)
        assert tensor is not None
        maps = self.target.layout.to_maps(tensor)
        whole = self.layer(montage(maps.reshape(-1, CELLS, *maps.shape[1:])))
        onward = self.target.layout.from_maps(cells_of(whole).flatten(0, 1), tensor)
        return with_tensor(output, onward)


class SlicedHead(nn.Module):
    """DiPart: the network sees the whole grid up to its last feature map, of which its head gets one cell's slice.

    Args:
        network: of single images; shared and left as it was.
        split: the last feature map, with its layout over a grid.
        cell: whose slice the head gets.
    """

    def __init__(self, network: nn.Module, split: TargetLayer, cell: int) -> None:
        super().__init__()
        self.training = network.training
        self.network = network
        self.split = split
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, 2 H, 2 W) grids to (N, K) logits of the cell."""
        with hooked(self.network.get_submodule(self.split.name), self._slice):
            return self.network(x)  # type: ignore[no-any-return]

    def _slice(self, _module: nn.Module, _arguments: Any, output: Any) -> Any:
        tensor = tensor_of(output)
        assert tensor is not None
        part = cells_of(self.split.layout.to_maps(tensor))[:, self.cell]
        onward = self.split.layout.from_maps(part, tensor)
        return with_tensor(output, onward)


@dataclass(frozen=True)
class Head:
    """A model of grids, and the cells that its score is about."""

    model: LoadedModel
    cells: tuple[int, ...]


def gridpg(model: LoadedModel) -> list[Head]:
    """GridPG: the network runs over the whole grid; the classes of all cells are targets of one head.

    Args:
        model: of single images.

    Returns:
        The head.

    Raises:
        MethodError: the network cannot take an image of twice its size.
    """
    return [Head(replace(_sized(model), layer=_over_grid(model, model.layer.name)), tuple(range(CELLS)))]


def difull(model: LoadedModel) -> list[Head]:
    """DiFull: see `Disconnected`; fits every network.

    Args:
        model: of single images.

    Returns:
        A head for each corner.
    """
    height, width = model.layer.layout.grid
    layout = Layout("channels_first", (SIDE * height, SIDE * width))
    layer = TargetLayer("layer", layout, model.layer.channels, f"{model.layer.name} of every cell")
    whole = replace(_sized(model), layer=layer, head=None)
    return [Head(replace(whole, module=Disconnected(model.module, model.layer, cell)), (cell,)) for cell in CORNERS]


def dipart(model: LoadedModel) -> list[Head]:
    """DiPart: see `SlicedHead`.

    Args:
        model: of single images.

    Returns:
        A head for each corner.

    Raises:
        MethodError: the network cannot take an image of twice its size, or its head cannot take a slice.
    """
    split, layer = _split(model), _over_grid(model, model.layer.name)
    whole = replace(_sized(model), layer=replace(layer, name=f"network.{layer.name}"), head=None)
    return [Head(replace(whole, module=SlicedHead(model.module, split, cell)), (cell,)) for cell in CORNERS]


SETTINGS: dict[str, Callable[[LoadedModel], list[Head]]] = {"gridpg": gridpg, "difull": difull, "dipart": dipart}


Explain = Callable[[Tensor, Choose, Tensor | None], Attribution]
"""A method that is bound to a model; see `Method.__call__`."""


@dataclass(frozen=True)
class GridScores:
    """What a method says of N grids.

    Attributes:
        cells: the P cells that are scored.
        maps: (N, P, h, w) float32 over the whole grid, raw and signed.
        scores: (N, P) float32, `localisation_score`.
    """

    cells: tuple[int, ...]
    maps: Tensor
    scores: Tensor


class GridScorer:
    """A method in a setting.

    Args:
        setting: key of `SETTINGS`.
        model: of single images.
        bind: makes the method for a model of grids, such as `lambda model: create("gradcam", model)`, or
            `lambda model: OnLayer(model, lambda upper: create("ig", upper))` to look at the target layer.

    Raises:
        MethodError: there is no such setting, or the model or the method does not fit it.
    """

    def __init__(self, setting: str, model: LoadedModel, bind: Callable[[LoadedModel], Explain]) -> None:
        if setting not in SETTINGS:
            raise MethodError(f"no setting is named {setting!r}; there are: {', '.join(SETTINGS)}")
        self._heads = [(bind(head.model), list(head.cells)) for head in SETTINGS[setting](model)]
        self.cells = tuple(cell for _, cells in self._heads for cell in cells)

    def __call__(self, x: Tensor, classes: Tensor, seeds: Tensor | None = None) -> GridScores:
        """Explains the class of every scored cell.

        Args:
            x: (N, C, 2 H, 2 W) normalised grids, see `montage`.
            classes: (N, 4) int64, of the cells.
            seeds: (N,) int64, one a grid, for methods that draw random numbers.

        Returns:
            Maps and scores.
        """
        found = [_explain(method, x, classes[:, cells], seeds) for method, cells in self._heads]
        maps = torch.cat(found, dim=1)
        cells = torch.tensor(self.cells, device=maps.device).repeat(len(maps))
        return GridScores(self.cells, maps, localisation_score(maps.flatten(0, 1), cells).view(len(maps), -1))


def _explain(method: Explain, x: Tensor, targets: Tensor, seeds: Tensor | None) -> Tensor:
    return method(x, lambda _logits: targets, seeds).maps


def _split(model: LoadedModel) -> TargetLayer:
    """The network's last feature map over a grid, where its head can take a slice of it."""
    preprocessing = model.preprocessing
    alone = find_layer(model.module, preprocessing.size, preprocessing.channels)
    split = _over_grid(model, alone.name)
    expected = tuple(SIDE * side for side in alone.layout.grid)
    if split.layout.prefix:
        raise MethodError(_unsliced(model, f"{split.name!r} comes with class tokens, which see every cell"))
    if split.layout.grid != expected:
        raise MethodError(_unsliced(model, f"{split.name!r} is {split.layout.grid} over a grid, not {expected}"))
    return split


def _unsliced(model: LoadedModel, why: str) -> str:
    return f"dipart does not fit {model.source}: its last feature map {why}; use difull"


def _sized(model: LoadedModel) -> LoadedModel:
    """The model with an input of twice its height and width."""
    height, width = model.preprocessing.size
    return replace(model, preprocessing=replace(model.preprocessing, size=(SIDE * height, SIDE * width)))


def _over_grid(model: LoadedModel, name: str) -> TargetLayer:
    """A layer of the network as it is over a grid."""
    preprocessing = _sized(model).preprocessing
    try:
        seen, _ = observe(model.module, noise(model.module, 2, preprocessing.channels, preprocessing.size))
        layer = choose(seen, name=name)
    except ModelError as error:
        raise MethodError(
            f"{model.source} cannot look at a grid: {error}. Networks with position embeddings of a fixed size fit "
            "difull only, unless they resample them (--model-arg dynamic_img_size=true in timm)"
        ) from error
    return replace(layer, why=f"{name} over a grid")
