"""A model as one object: module, preprocessing, labels and target layer, resolved in one place."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec
import torch
from torch import nn

from pipeline.errors import ModelError, first_line
from pipeline.model import weights as weights_file
from pipeline.model.dry_run import noise, observe
from pipeline.model.layers import TargetLayer, choose, find_head, submodule_name
from pipeline.model.sources import Source, build
from pipeline.preprocessing import Preprocessing, overridden
from schemas.graph import ModelSpec

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class LoadedModel:
    """Everything that decides a prediction, and where to look.

    Attributes:
        module: (N, C, H, W) to (N, K) logits; evaluation mode, no parameter requires a gradient.
        preprocessing: of its input.
        labels: K class names; their indices where the source has no names.
        layer: the target layer.
        head: path of the linear layer that gives the logits, or None.
        classes: K.
        weights_sha256: of the file, or of the tensors where there is no file.
        source: the model's address.
        arguments: of its constructor.
        note: what was decided when it was read, for people.
        obstacle: why a part of the network has no gradient, for people; empty where all of it has.
    """

    module: nn.Module
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    layer: TargetLayer
    head: str | None
    classes: int
    weights_sha256: str
    source: str
    arguments: Mapping[str, Any]
    note: str = ""
    obstacle: str = ""

    def describe(self) -> dict[str, Any]:
        """What decides the prediction, as plain JSON values; part of the graph digest."""
        values = {
            "source": self.source,
            "arguments": dict(self.arguments),
            "weights_sha256": self.weights_sha256,
            "preprocessing": _computed(asdict(self.preprocessing), "origin", "share"),
            "layer": _computed(asdict(self.layer), "why"),
            "classes": self.classes,
            "labels_sha256": hashlib.sha256("\n".join(self.labels).encode()).hexdigest()[:16],
        }
        plain: dict[str, Any] = json.loads(json.dumps(values))
        return plain

    def class_index(self, name: str) -> int:
        """The index of a class given by index or name.

        Args:
            name: a number, a label, its part before the first comma, or its WordNet number; in any case.

        Returns:
            The class index.

        Raises:
            ModelError: no class or more than one class has that name.
        """
        if re.fullmatch(r"-?\d+(\.0+)?", name):  # a column of numbers with gaps comes as 3.0
            return self._in_range(int(float(name)))
        found = self._by_name.get(name.lower(), [])
        if len(found) == 1:
            return found[0]
        close = [label for label in self.labels if name.lower() in label.lower()][:5]
        problem = "no class is" if not found else f"{len(found)} classes ({found}) are"
        raise ModelError(
            f"{problem} named {name!r}; give an index 0..{self.classes - 1}, or one of {close or self.labels[:5]}"
        )

    @cached_property
    def _by_name(self) -> dict[str, list[int]]:
        """Class indices by every way to write a label, in lower case."""
        names: dict[str, list[int]] = {}
        for index, label in enumerate(self.labels):
            for form in _forms(label.lower()):
                names.setdefault(form, []).append(index)
        return names

    def _in_range(self, index: int) -> int:
        if not 0 <= index < self.classes:
            raise ModelError(f"class {index} is not in 0..{self.classes - 1}")
        return index


def _forms(label: str) -> set[str]:
    """`n02111889 samoyed, samoyede` is also `n02111889`, `samoyed` and `samoyed, samoyede`."""
    wordnet = re.match(r"(n\d{8})\s+(.*)", label)
    bare = wordnet.group(2) if wordnet else label
    return {label, bare, bare.split(",")[0].strip()} | ({wordnet.group(1)} if wordnet else set())


def _computed(values: dict[str, Any], *remarks: str) -> dict[str, Any]:
    """The values without what is said to people or used up already, which must not change a digest."""
    return {name: value for name, value in values.items() if name not in remarks}


def load(
    spec: ModelSpec, *, device: str = "cpu", precision: str = "float32", storage: Mapping[str, Any] | None = None
) -> LoadedModel:
    """Loads a model: the one place where weights, preprocessing, labels and layer come together.

    Args:
        spec: what to load.
        device: `cpu` or `cuda`.
        precision: `float32`, `bfloat16` or `float16`.
        storage: fsspec options for remote weights and labels.

    Returns:
        The model, ready to be explained.

    Raises:
        ModelError: anything is missing or does not fit; the message says how to mend it.
    """
    storage = storage or {}
    source, digest = _weighted(spec, storage)
    module = source.module
    if not spec.source.endswith(".pt2"):
        module.eval()
    module.requires_grad_(False)
    preprocessing = overridden(source.preprocessing, spec, size=source.size)
    seen, logits = observe(module, noise(module, 2, preprocessing.channels, preprocessing.size))
    layer = choose(seen, name=submodule_name(module, spec.layer))
    digest = digest or _tensor_digest(module)  # before the precision changes
    module.to(device=device, dtype=DTYPES[precision])
    if device == "cuda":
        module.to(memory_format=torch.channels_last)
    return LoadedModel(
        module=module,
        preprocessing=preprocessing,
        labels=_labels(spec, source.labels, logits.shape[1], storage),
        layer=layer,
        head=find_head(seen, logits),
        classes=logits.shape[1],
        weights_sha256=digest,
        source=spec.source,
        arguments=spec.arguments,
        note=source.note,
        obstacle=source.obstacle,
    )


def _weighted(spec: ModelSpec, storage: Mapping[str, Any]) -> tuple[Source, str | None]:
    """The network with the weights that are asked for, and the digest of their file where there is one."""
    pretrained = spec.weights in (None, "pretrained") and not spec.source.endswith(".pt2")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # `random` weights must be the same in every worker
        source = build(spec.source, dict(spec.arguments), pretrained=pretrained, layer=spec.layer)
    if spec.weights in (None, "pretrained", "random"):
        return source, None
    path, digest = weights_file.fetch(spec.weights, storage, sha256=spec.weights_sha256)
    weights_file.apply(source.module, weights_file.read(path), address=spec.weights)
    return source, digest


def _tensor_digest(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _labels(spec: ModelSpec, own: Sequence[str] | None, classes: int, storage: Mapping[str, Any]) -> tuple[str, ...]:
    names = _read_labels(spec.labels, storage) if spec.labels else own
    if names is None:
        return tuple(str(i) for i in range(classes))
    if len(names) != classes:
        raise ModelError(
            f"{spec.labels or spec.source} has {len(names)} labels and the model {classes} classes; "
            "give --labels FILE with one name a line"
        )
    return tuple(names)


def _read_labels(address: str, storage: Mapping[str, Any]) -> list[str]:
    try:
        with fsspec.open(address, "rt", **(storage if "://" in address else {})) as file:
            text = file.read()
    except FileNotFoundError as error:
        raise ModelError(f"labels file {address} does not exist; check --labels") from error
    if Path(address).suffix == ".json":
        return _json_labels(text, address)
    return [line.strip() for line in text.strip().splitlines()]


def _json_labels(text: str, address: str) -> list[str]:
    """Names in a list, or in an object by class index."""
    try:
        content = json.loads(text)
        names = [content[str(i)] for i in range(len(content))] if isinstance(content, dict) else list(content)
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(
            f'labels file {address} is neither a JSON list of names nor an object of them by "0", "1", ... '
            f"({type(error).__name__}: {first_line(error)}); mend it, or give a text file with one name a line"
        ) from error
    return [str(name) for name in names]
