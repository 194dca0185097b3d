"""Weights files: fetched once a node, checked by digest, read without pickle."""

import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec
import torch
from filelock import FileLock
from safetensors.torch import load_file

from pipeline.errors import ModelError, first_line

NESTED = ("state_dict_ema", "state_dict", "model_ema", "model")
PREFIXES = ("module.", "model.", "_orig_mod.")


def cache_folder() -> Path:
    """Folder of a node for fetched weights."""
    return Path(tempfile.gettempdir()) / f"raylens-{os.getuid()}" / "weights"


def digest_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(address: str, storage: Mapping[str, Any], *, sha256: str | None = None) -> tuple[Path, str]:
    """Makes a file local, once a node, and checks it.

    Safe to call from many processes at a time and to retry: the file is written under a temporary name and renamed.

    Args:
        address: local path or fsspec address.
        storage: fsspec options for a remote address.
        sha256: expected digest; a difference is an error.

    Returns:
        A local path and the file's SHA-256.

    Raises:
        ModelError: the file is absent, or is not the one that was expected.
    """
    path = Path(address) if "://" not in address else _download(address, storage, sha256)
    if not path.is_file():
        raise ModelError(f"weights file {address} does not exist; check --weights")
    found = digest_of(path)
    if sha256 is not None and found != sha256:
        raise ModelError(f"weights {address} have SHA-256 {found}, expected {sha256}: another file; check --weights")
    return path, found


def _download(address: str, storage: Mapping[str, Any], sha256: str | None) -> Path:
    filesystem, remote = fsspec.url_to_fs(address, **storage)
    try:
        version = sha256 or str(filesystem.ukey(remote))
    except FileNotFoundError as error:
        raise ModelError(f"weights file {address} does not exist; check --weights and the storage options") from error
    target = _cached(address, version)
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with FileLock(target.with_suffix(".lock")):
        if not target.exists():
            partial = target.with_suffix(".partial")
            filesystem.get_file(remote, str(partial))
            partial.replace(target)
        if sha256 is None:  # the workers of a job know the digest, and find the file by it
            by_digest = _cached(address, digest_of(target))
            by_digest.unlink(missing_ok=True)
            by_digest.hardlink_to(target)
    return target


def _cached(address: str, version: str) -> Path:
    name = hashlib.sha256(f"{address} {version}".encode()).hexdigest()[:24]
    return cache_folder() / f"{name}{Path(address).suffix}"


def read(path: Path) -> dict[str, torch.Tensor]:
    """Reads a state dict from safetensors or a torch file, never unpickling code.

    Args:
        path: `.safetensors`, or anything `torch.load(weights_only=True)` takes.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        ModelError: the file is neither, or holds something other than tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ModelError(
            f"{path} is not a readable weights file ({type(error).__name__}: {first_line(error)}); "
            "raylens takes safetensors and state dicts of plain tensors"
        ) from error
    return _tensors(content, path)


def _tensors(content: object, path: Path) -> dict[str, torch.Tensor]:
    for key in NESTED:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ModelError(f"{path} holds no state dict; save one with safetensors.torch.save_model(model, path)")
    return content


def apply(module: torch.nn.Module, state: dict[str, torch.Tensor], *, address: str) -> None:
    """Loads a state dict into a module; every name and shape must agree.

    Args:
        module: changed in place.
        state: tensors by name; a prefix such as `module.` that all names share is dropped.
        address: for the error.

    Raises:
        ModelError: names or shapes differ.
    """
    own = module.state_dict()
    for prefix in PREFIXES:
        if state and all(key.startswith(prefix) for key in state) and not any(key.startswith(prefix) for key in own):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        shapes = [
            f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}"
            for key in sorted(own.keys() & state.keys())
            if own[key].shape != state[key].shape
        ]
        raise ModelError(
            f"weights {address} do not fit the model: {len(missing)} names missing {missing[:3]}, "
            f"{len(unexpected)} unexpected {unexpected[:3]}, {len(shapes)} shapes differ {shapes[:3]}; "
            "check --model and --model-arg (for example --model-arg num_classes=10)"
        ) from error
