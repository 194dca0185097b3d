"""Every kind of model address, loaded whole; and what is said when one is wrong."""

import copy
import json
import os
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import transformers
from model import networks
from PIL import Image
from safetensors.torch import save_file

from pipeline.errors import ModelError
from pipeline.model import load
from pipeline.model.sources import SCHEMES, build
from pipeline.model.weights import digest_of
from schemas.graph import ModelSpec

torch.set_num_threads(1)

STATED = {"size": 32, "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
SHARED = "module:model.networks:Shared"


def spec(source, *, weights="random", **more):
    return ModelSpec(source=str(source), weights=weights, **more)


@pytest.fixture(scope="module")
def hf_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vit")
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=8,
        id2label={0: "cat", 1: "dog", 2: "fox"},
    )
    torch.manual_seed(0)
    transformers.ViTForImageClassification(config).to(torch.bfloat16).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}, image_std=[0.2, 0.3, 0.4]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """An exported program with a dynamic batch, and one with a batch of one."""
    folder = tmp_path_factory.mktemp("program")
    torch.manual_seed(0)
    network = networks.ClassToken().eval()
    images = {0: torch.export.Dim("images", min=1)}
    for name, count, shapes in (("dynamic", 2, (images,)), ("fixed", 1, None)):
        exported = torch.export.export(network, (torch.randn(count, 3, 32, 32),), dynamic_shapes=shapes)
        torch.export.save(exported, folder / f"{name}.pt2")
    return folder, network


def test_timm():
    model = load(spec("timm:resnet10t", arguments={"num_classes": 7}))
    assert (model.classes, model.labels[:2], model.head) == (7, ("0", "1"), "fc")
    assert model.preprocessing.size == (176, 176)
    assert model.preprocessing.resize == (201, 201)
    assert not model.module.training
    assert not any(parameter.requires_grad for parameter in model.module.parameters())


def test_timm_follows_its_size_and_channels():
    arguments = {"img_size": [32, 64], "in_chans": 1, "depth": 1, "num_classes": 3}
    preprocessing = load(spec("timm:vit_tiny_patch16_224", arguments=arguments)).preprocessing
    assert preprocessing.size == (32, 64)
    assert preprocessing.resize == (35, 71)
    assert preprocessing.mode == "L"


def test_timm_labels_are_those_of_imagenet():
    assert build("timm:resnet10t", {}, pretrained=False).labels[207] == "golden retriever"
    assert build("timm:resnet10t", {"num_classes": 5}, pretrained=False).labels is None


def test_torchvision():
    model = load(spec("torchvision:mobilenet_v3_small"))
    assert model.labels[207] == "golden retriever"
    assert (model.preprocessing.size, model.preprocessing.resize) == ((224, 224), (256, 256))
    assert model.preprocessing.interpolation == "bilinear"
    source = build("torchvision:vit_b_16", {"image_size": 32, "num_classes": 5}, pretrained=False)
    assert (source.preprocessing.size, source.labels) == ((32, 32), None)


def test_random_weights_are_the_same_everywhere_and_leave_the_generator():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = load(spec(SHARED))
    assert torch.equal(torch.rand(1), expected)
    assert load(spec(SHARED)).weights_sha256 == first.weights_sha256


def test_transformers(hf_folder):
    model = load(spec(f"hf:{hf_folder}"))
    assert model.labels == ("cat", "dog", "fox")
    assert model.preprocessing.size == (32, 32)
    assert model.preprocessing.std == pytest.approx((0.2, 0.3, 0.4))
    assert model.head == "network.classifier"
    assert {parameter.dtype for parameter in model.module.parameters()} == {torch.float32}
    x = torch.randn(2, 3, 32, 32)
    network = transformers.ViTForImageClassification.from_pretrained(hf_folder, dtype=torch.float32).eval()
    torch.testing.assert_close(model.module(x), network(x).logits)


PROCESSORS = {
    "ViTImageProcessor": {},
    "DeiTImageProcessor": {},
    "ConvNextImageProcessor": {"size": {"shortest_edge": 224}},
    "ConvNextImageProcessor at 384": {"size": {"shortest_edge": 384}},
    "PoolFormerImageProcessor": {},
    "LevitImageProcessor": {},
    "EfficientNetImageProcessor": {},
    "EfficientNetImageProcessor with offset": {"rescale_offset": True, "rescale_factor": 1 / 127.5},
    "MobileNetV2ImageProcessor": {},
    "CLIPImageProcessor": {},
    "BeitImageProcessor": {},
    "ViTImageProcessor unscaled": {"do_rescale": False, "do_normalize": False},
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_transformers_image_processors(hf_folder, tmp_path, name):
    processor = getattr(transformers, name.split()[0])(**PROCESSORS[name])
    processor.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((hf_folder / "config.json").read_text())
    os.link(hf_folder / "model.safetensors", tmp_path / "model.safetensors")
    preprocessing = build(f"hf:{tmp_path}", {}, pretrained=False).preprocessing
    y, x = np.mgrid[0:300, 0:451]
    image = Image.fromarray(np.stack([x % 256, y % 256, (x + y) % 256], axis=-1).astype(np.uint8))
    theirs = processor(images=image, return_tensors="pt")["pixel_values"]
    ours = preprocessing.normalise(torch.tensor(preprocessing.pixels(image))[None], torch.float32)
    assert theirs.shape == ours.shape
    difference = preprocessing.denormalise(theirs.float()) - preprocessing.denormalise(ours)
    assert difference.abs().mean() * 255 < 0.5


@pytest.mark.parametrize(
    ("name", "settings", "reason"),
    [
        ("MobileViTImageProcessor", {}, "grey levels"),  # blue first
        ("PerceiverImageProcessor", {}, "shape"),  # crops before it resizes
        ("ViTImageProcessor", {"do_resize": False}, "do_resize false"),
        ("CLIPImageProcessor", {"do_center_crop": False}, "images of many sizes"),
    ],
)
def test_transformers_image_processors_that_differ_are_refused(hf_folder, tmp_path, name, settings, reason):
    getattr(transformers, name)(**settings).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((hf_folder / "config.json").read_text())
    os.link(hf_folder / "model.safetensors", tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=f"{name}.* does something that raylens does not reproduce .*{reason}.*remove"):
        build(f"hf:{tmp_path}", {}, pretrained=False)


def test_module():
    model = load(spec(SHARED))
    assert model.preprocessing.size == (32, 32)
    assert model.preprocessing.origin == "pretrained_cfg of model.networks:Shared"
    assert model.source == SHARED


def test_exported_program(program):
    folder, network = program
    model = load(spec(folder / "dynamic.pt2", **STATED))
    assert (model.classes, model.layer.name) == (5, "blocks.2.norm1")
    for count in (1, 2, 5):
        x = torch.randn(count, 3, 32, 32)
        torch.testing.assert_close(model.module(x), network(x))
    torch.testing.assert_close(copy.deepcopy(model.module)(x), network(x))


def test_weights_file(tmp_path):
    torch.manual_seed(1)
    network = networks.Shared()
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}, tmp_path / "w.pt")
    x = torch.randn(2, 3, 32, 32)
    for name in ("w.safetensors", "w.pt"):
        model = load(spec(SHARED, weights=str(tmp_path / name), weights_sha256=digest_of(tmp_path / name)))
        assert model.weights_sha256 == digest_of(tmp_path / name)
        torch.testing.assert_close(model.module(x), network.eval()(x))


def test_labels_file(tmp_path):
    (tmp_path / "names.txt").write_text("a\nb\nc\nd\ne\n")
    (tmp_path / "names.json").write_text(json.dumps({str(i): f"class {i}" for i in range(5)}))
    assert load(spec(SHARED, labels=str(tmp_path / "names.txt"))).labels == ("a", "b", "c", "d", "e")
    model = load(spec(SHARED, labels=str(tmp_path / "names.json")))
    assert model.class_index("class 3") == 3


class Stranger:
    """Something that a pickle may not bring."""


def wrong_weights(folder: Path) -> dict[str, str]:
    save_file({"stem.weight": torch.ones(1)}, folder / "other.safetensors")
    torch.save({"weights": Stranger()}, folder / "pickled.pt")
    torch.save([torch.ones(1)], folder / "list.pt")
    (folder / "text.safetensors").write_text("no weights")
    return {
        "other.safetensors": r"do not fit the model: 5 names missing .* 1 shapes differ \['stem.weight \(1,\) for",
        "pickled.pt": "is not a readable weights file",
        "list.pt": "holds no state dict",
        "text.safetensors": "is not a readable weights file",
        "absent.safetensors": "does not exist; check --weights",
    }


def test_wrong_weights_files(tmp_path):
    for name, message in wrong_weights(tmp_path).items():
        with pytest.raises(ModelError, match=message):
            load(spec(SHARED, weights=str(tmp_path / name)))
    with pytest.raises(ModelError, match=r"have SHA-256 [0-9a-f]{64}, expected 0000"):
        load(spec(SHARED, weights=str(tmp_path / "other.safetensors"), weights_sha256="0000"))


WRONG = {
    "resnet18": "model 'resnet18' is not an address: use timm:NAME",
    "keras:resnet50": "is not an address",
    "timm:": "is not an address",
    "timm:no_such_network": "could not be built with arguments {} .*Unknown model",
    "torchvision:no_such_network": "could not be built",
    "hf:/no/such/folder": "is not a local transformers folder: it has no config.json",
    "module:model.networks": "needs a factory: module:package.mod:factory",
    "module:no.such.package:Network": "cannot be imported .*is its package installed on every node",
    "module:model.networks:NoSuchNetwork": "cannot be imported",
    "module:model.networks:not_a_module": "returned str, expected a torch.nn.Module",
    "/no/such/file.pt2": "exported program /no/such/file.pt2 does not exist",
}


@pytest.mark.parametrize("source", WRONG)
def test_wrong_addresses(source):
    with pytest.raises(ModelError, match=WRONG[source]):
        load(spec(source, **STATED))


def test_every_scheme_has_a_wrong_address():
    assert {source.partition(":")[0] for source in WRONG} >= set(SCHEMES)


def test_wrong_arguments(program):
    with pytest.raises(
        ModelError, match=r"could not be built with arguments {'widht': 3}.*check the name and --model-arg"
    ):
        load(spec(SHARED, arguments={"widht": 3}))
    with pytest.raises(ModelError, match=r"takes no --model-arg, found \['width'\]"):
        load(spec(program[0] / "dynamic.pt2", arguments={"width": 3}, **STATED))


def test_wrong_programs(program, tmp_path):
    (tmp_path / "text.pt2").write_text("no program")
    with pytest.raises(ModelError, match=r"is not a program saved by torch.export.save"):
        load(spec(tmp_path / "text.pt2", **STATED))
    with pytest.raises(
        ModelError, match=r"cannot take a batch of 2 x 3 x 32 x 32 .*an exported program has a dynamic batch"
    ):
        load(spec(program[0] / "fixed.pt2", **STATED))


def test_no_preprocessing(program):
    with pytest.raises(ModelError, match="says nothing about its preprocessing: add --mean, --std"):
        load(spec(program[0] / "dynamic.pt2", size=32))


def test_labels_that_do_not_fit(tmp_path):
    with pytest.raises(ModelError, match="has 4 labels and the model 5 classes; give --labels FILE"):
        load(spec("module:model.networks:LabelledShared"))
    with pytest.raises(ModelError, match=r"labels file .* does not exist; check --labels"):
        load(spec(SHARED, labels=str(tmp_path / "absent.txt")))


@pytest.mark.parametrize("text", ["{", "3", '{"0": "cat", "2": "dog"}'])
def test_labels_that_are_no_json_list(text, tmp_path):
    (tmp_path / "labels.json").write_text(text)
    with pytest.raises(ModelError, match=r"neither a JSON list of names .* one name a line"):
        load(spec(SHARED, labels=str(tmp_path / "labels.json")))


def test_published_weights_out_of_reach_are_explained(monkeypatch):
    def offline(*_args, pretrained, **_kwargs):
        raise OSError("offline") if pretrained else AssertionError

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ModelError, match=r"could not be built with its published weights .*--weights random"):
        load(spec("timm:resnet10t", weights=None))
