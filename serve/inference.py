"""The Open Inference protocol, version 2, without a transport: a request, and its answer as tensors."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import JsonValue

from pipeline.heatmap import scaled_for_half
from serve.answers import facts
from serve.models import Served
from serve.problems import RefusedError
from serve.service import Answer, Question, Service
from serve.tensors import Described, InferRequest, images

VERSION = "1"
"""Of every model; another one has another name."""
IMAGE = "image"
OUTPUTS = ("scores", "prediction", "target", "heatmap")
SCALE = "heatmap_scale"
PARAMETERS = ("method", "target", "sample_id", "heatmap_dtype", "timeout", "binary_data_output")


@dataclass(frozen=True)
class Inference:
    """An answer.

    Attributes:
        service: that gave it.
        asked: the request.
        answers: one an image.
        tensors: outputs that are wanted, by name and in that order; one row an image.
        rendering: when the answers were there, by `time.perf_counter()`, s.
    """

    service: Service
    asked: InferRequest
    answers: list[Answer]
    tensors: dict[str, NDArray[Any]]
    rendering: float = field(default_factory=time.perf_counter)

    @property
    def model(self) -> str:
        """Name of the model."""
        return self.answers[0].question.served.name

    def parameters(self, request_id: str) -> dict[str, str | float | bool]:
        """Closes the times, and says once what holds for all images; values are flat, as the protocol asks.

        Args:
            request_id: of the request.

        Returns:
            What was computed, and the times of the slowest image in ms.
        """
        slowest = self.service.closed(self.answers, self.rendering)
        times = {f"{stage}_ms": round(value, 3) for stage, value in slowest.timing_ms.items()}
        cached = all(answer.cached for answer in self.answers)
        return {**facts(slowest), "request_id": request_id, "cached": cached, **times}


def server_metadata() -> dict[str, Any]:
    """Name, version and extensions of the server."""
    return {"name": "raylens", "version": version("raylens"), "extensions": ["binary_tensor_data"]}


def model_metadata(served: Served) -> dict[str, Any]:
    """Inputs and outputs of a model; `image` may also be UINT8 of the model's own size."""
    tensors = [("scores", "FP32", [-1, served.model.classes]), ("prediction", "INT64", [-1])]
    tensors += [("target", "INT64", [-1]), ("heatmap", "FP32", [-1, -1, -1])]
    return {
        "name": served.name,
        "versions": [VERSION],
        "platform": f"raylens_{served.offer(None).graph.runtime}",
        "inputs": [{"name": IMAGE, "datatype": "BYTES", "shape": [-1]}],
        "outputs": [{"name": name, "datatype": kind, "shape": shape} for name, kind, shape in tensors],
    }


def check_version(version: str) -> None:
    """Refuses a version of a model that there is not; without any it is left to the server."""
    if version not in ("", VERSION):
        raise RefusedError("unknown_model", f"every model has version {VERSION} only, found {version[:20]!r}")


def image_of(asked: InferRequest) -> Described:
    """The one input of a request.

    Args:
        asked: the request.

    Returns:
        Its input `image`.

    Raises:
        RefusedError: `bad_request`; there are others, or it is empty.
    """
    names = [found.name for found in asked.inputs]
    if names != [IMAGE]:
        raise RefusedError("bad_request", f"expected one input `{IMAGE}`, found {', '.join(names)[:100]}")
    if asked.inputs[0].shape[:1] == [0]:
        raise RefusedError("bad_request", f"input {IMAGE} is empty")
    return asked.inputs[0]


async def infer(
    service: Service, model: str, asked: InferRequest, blob: bytes | None, *, arrived: float | None = None
) -> Inference:
    """Answers a request.

    Args:
        service: is asked.
        model: name.
        asked: the request.
        blob: bytes of the input; None where its values are in the request.
        arrived: see `Service.ask`.

    Returns:
        Scores (softmax), predictions, targets and heatmaps.

    Raises:
        RefusedError: the request is wrong, or cannot be answered now.
    """
    question = _question(service, model, asked)
    half = asked.parameters.get("heatmap_dtype") == "FP16"
    wanted = _wanted(asked, half=half)
    described = image_of(asked)
    service.check_count(described.shape[0] if described.shape else 1)
    sources = images(described, blob, question.served.model.preprocessing.shape)
    answers = [found[0] for found in await service.ask(question, sources, arrived=arrived)]
    values = _values(answers, half=half)
    return Inference(service, asked, answers, {name: values[name] for name in wanted})


def _question(service: Service, model: str, asked: InferRequest) -> Question:
    given = asked.parameters
    if unknown := sorted(given.keys() - set(PARAMETERS)):
        raise RefusedError(
            "unknown_option", f"no parameter is named {unknown[0][:50]!r}; there are {', '.join(PARAMETERS)}"
        )
    if given.get("heatmap_dtype", "FP32") not in ("FP32", "FP16"):
        raise RefusedError("unknown_option", "heatmap_dtype is FP32 or FP16")
    target = _text(given, "target", most=200) or "predicted"
    if target.startswith("top:"):
        raise RefusedError("unknown_class", "a tensor has one map an image: ask for the classes of top:K one by one")
    return service.question(
        model,
        _text(given, "method", most=100),
        target,
        sample_id=_text(given, "sample_id", most=1000),
        timeout_s=_timeout_s(given.get("timeout")),
    )


def _text(given: Mapping[str, JsonValue], name: str, *, most: int) -> str | None:
    """A parameter that is text; a whole number is taken as its digits, since a target may be an index."""
    value = given.get(name)
    if value is None:
        return None
    text = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    if not 0 < len(text) <= most or any(0xD800 <= ord(character) < 0xE000 for character in text):
        raise RefusedError("unknown_option", f"parameter {name} is a text of 1..{most} Unicode characters")
    return text


def _timeout_s(timeout_us: JsonValue) -> float | None:
    """Seconds of the protocol's microseconds; 0 and None are the service's own deadline."""
    if timeout_us is None:
        return None
    if not isinstance(timeout_us, int) or isinstance(timeout_us, bool) or not 0 <= timeout_us < 2**63:
        raise RefusedError("unknown_option", "parameter timeout is a whole number of microseconds")
    return timeout_us / 1e6


def _wanted(asked: InferRequest, *, half: bool) -> list[str]:
    """Names of the outputs, in the request's order; halved maps come with their scale."""
    there = (*OUTPUTS, SCALE) if half else OUTPUTS
    names = list(dict.fromkeys(output.name for output in asked.outputs)) or list(there)
    if unknown := sorted(set(names) - set(there)):
        raise RefusedError("unknown_option", f"no output is named {unknown[0][:50]!r}; there are {', '.join(there)}")
    return [*names, SCALE] if half and SCALE not in names else names


def _values(answers: list[Answer], *, half: bool) -> dict[str, NDArray[Any]]:
    """Outputs by name, one row an image."""
    explained = [answer.explained for answer in answers]
    scores = np.stack([found.probabilities for found in explained])
    maps = np.stack([found.heatmap for found in explained])
    values: dict[str, NDArray[Any]] = {
        "scores": scores,
        "prediction": scores.argmax(axis=1).astype(np.int64),
        "target": np.array([found.target for found in explained], np.int64),
        "heatmap": maps,
    }
    if half:
        scaled, scale = scaled_for_half(torch.from_numpy(maps))
        values |= {"heatmap": scaled.numpy().astype(np.float16), SCALE: scale.numpy()}
    return values
