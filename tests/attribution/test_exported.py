"""Every method on an exported program: the eager network's map, or a refusal that names what is missing."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from attribution.cases import parameters
from attribution.networks import images, relu_cnn, smooth_cnn, tiny_vit

from pipeline.attribution import METHODS, create
from pipeline.attribution.multilayer import MultiLayer
from pipeline.model import LoadedModel, load
from schemas.graph import ModelSpec

torch.set_num_threads(1)

NETWORKS = {"cnn": relu_cnn, "vit": tiny_vit, "smooth": smooth_cnn}
MISSING = {"lrp": "conv2d outside of torch.nn's layers", "srmap": "conv2d outside of torch.nn's layers"}
"""What the program lacks that the eager network has: zennit's rules are hooks on layers of torch.nn."""


@cache
def pair(network: str) -> tuple[LoadedModel, LoadedModel]:
    """The eager network, and what loads from its exported program with a dynamic batch."""
    model = NETWORKS[network]()
    stated = {"size": model.preprocessing.size[0], "mean": model.preprocessing.mean, "std": model.preprocessing.std}
    example = torch.randn(2, 3, *model.preprocessing.size)
    program = torch.export.export(model.module, (example,), dynamic_shapes=({0: torch.export.Dim("images", min=1)},))
    with TemporaryDirectory() as folder:
        file = str(Path(folder) / "network.pt2")
        torch.export.save(program, file)
        return model, load(ModelSpec(source=file, layer=model.layer.name, **stated))


def chosen_for(name: str, model: LoadedModel) -> dict:
    """Parameters of the other tests; layers by name, since a program has other modules to choose from."""
    if name != "multilayer":
        return parameters(name)
    return {"method": "layercam", "layers": [method.model.layer.name for method in MultiLayer(model)._methods]}


def explained(name: str, model: LoadedModel, chosen: dict):
    method = create(name, model, seed=3, **chosen)
    return method(images(model, 2).float(), lambda _: torch.tensor([[1], [3]]), torch.tensor([5, 6]))


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", METHODS)
def test_a_program_is_explained_as_its_network_or_refused(name, network):
    model, program = pair(network)
    if METHODS[name].misfit(model) is not None:
        assert METHODS[name].misfit(program) is not None
    elif name in MISSING:
        assert MISSING[name] in METHODS[name].misfit(program)
    else:
        chosen = chosen_for(name, model)
        found, expected = explained(name, program, chosen), explained(name, model, chosen)
        close(found.logits, expected.logits)
        close(found.maps, expected.maps)
        if expected.check is not None:
            torch.testing.assert_close(found.check, expected.check, rtol=1e-2, atol=1e-3)
