"""Weights files: fetched once a node, checked by digest, never unpickled."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pipeline.errors import ModelError
from pipeline.model import load, weights
from pipeline.stream.storage import open_filesystem
from schemas.graph import ModelSpec


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    from pipeline.bias.tinycnn import tiny_cnn

    torch.manual_seed(3)
    return tiny_cnn(4).state_dict()


def spec(address: str, **fields: Any) -> ModelSpec:
    source = "module:pipeline.bias.tinycnn:tiny_cnn"
    return ModelSpec(source=source, weights=address, size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3, **fields)


def test_from_object_storage_once(
    s3: Any, tmp_path: Path, state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "cache_folder", lambda: tmp_path / "cache")
    save_file(state, tmp_path / "a.safetensors")
    bucket = s3.bucket("weights")
    filesystem, root = open_filesystem(f"s3://{bucket}", s3.storage_options())
    filesystem.pipe_file(f"{root}/a.safetensors", (tmp_path / "a.safetensors").read_bytes())
    address = f"s3://{bucket}/a.safetensors"
    model = load(spec(address), storage=s3.storage_options())
    assert model.weights_sha256 == weights.digest_of(tmp_path / "a.safetensors")
    assert all(torch.equal(value, state[name]) for name, value in model.module.state_dict().items())
    filesystem.rm_file(f"{root}/a.safetensors")
    again = load(spec(address, weights_sha256=model.weights_sha256), storage=s3.storage_options())
    assert again.weights_sha256 == model.weights_sha256
    with pytest.raises(ModelError, match="does not exist"):
        load(spec(f"s3://{bucket}/none.safetensors"), storage=s3.storage_options())


def test_another_file_than_expected_is_refused(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match="expected 0000"):
        load(spec(str(tmp_path / "a.safetensors"), weights_sha256="0000"))


@pytest.mark.parametrize("nested", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_state_dicts_as_training_scripts_save_them(
    tmp_path: Path, state: dict[str, torch.Tensor], nested: str | None, prefix: str
) -> None:
    named = {f"{prefix}{name}": value for name, value in state.items()}
    torch.save(named if nested is None else {nested: named, "epoch": 3}, tmp_path / "a.pt")
    model = load(spec(str(tmp_path / "a.pt")))
    assert all(torch.equal(value, state[name]) for name, value in model.module.state_dict().items())


def test_pickled_code_is_never_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    (tmp_path / "a.pt").write_bytes(pickle.dumps({"state_dict": Evil()}))
    torch.save({"state_dict": Evil()}, tmp_path / "b.pt")
    for name in ("a.pt", "b.pt"):
        with pytest.raises(ModelError, match="not a readable weights file"):
            load(spec(str(tmp_path / name)))
    assert not (tmp_path / "ran").exists()


def test_what_does_not_fit_is_named(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    save_file({f"x.{name}": value for name, value in state.items()}, tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match=r"names missing.*unexpected.*--model-arg"):
        load(spec(str(tmp_path / "a.safetensors")))
