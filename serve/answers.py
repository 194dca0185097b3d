"""Answers as plain values: what every protocol says of an image, under the same names."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.preprocessing import share_within
from pipeline.report.sentence import sentence
from serve.service import Answer

STATISTICS = ("mass_centre", "centroid_x", "centroid_y", "gini", "box")


def named(answer: Answer, index: int) -> dict[str, Any]:
    """A class with its label and its softmax probability."""
    label = answer.question.served.model.labels[index]
    return {"class": index, "label": label, "score": float(answer.explained.probabilities[index])}


def top(answer: Answer, count: int) -> list[dict[str, Any]]:
    """The best classes, best first."""
    order = np.argsort(-answer.explained.probabilities, kind="stable")[: max(1, count)]
    return [named(answer, int(index)) for index in order]


def facts(answer: Answer) -> dict[str, str]:
    """What was computed, equal for all images of a request."""
    question = answer.question
    return {
        "model": question.served.name,
        "method": question.offer.name,
        "layer": question.served.model.layer.name,
        "graph_digest": question.offer.digest,
    }


def explanation(answer: Answer, *, resolution: str = "layer") -> dict[str, Any]:
    """The map of one class, its numbers and its sentence."""
    heatmap = resized(answer, resolution)
    statistics = {name: _finite(answer.explained.statistics[name]) for name in STATISTICS}
    if answer.explained.check is not None:
        statistics["self_check"] = _finite(answer.explained.check)
    return {
        "target": named(answer, answer.explained.target),
        "heatmap": {
            "shape": list(heatmap.shape),
            "data": heatmap.tolist(),
            "min": float(heatmap.min()),
            "max": float(heatmap.max()),
        },
        "statistics": statistics,
        "sentence": said(answer),
    }


def explained(answers: list[Answer], *, resolution: str = "layer") -> dict[str, Any]:
    """The maps of one image: the first one's, where it lies, and with several classes `explanations`, one a class."""
    maps = [explanation(answer, resolution=resolution) for answer in answers]
    width, height = answers[0].size
    image = {"width": width, "height": height, "crop": list(answers[0].crop)}
    return {**maps[0], "image": image, **({"explanations": maps} if len(maps) > 1 else {})}


def said(answer: Answer) -> str:
    """The sentence of an answer."""
    question = answer.question
    return sentence(
        answer.explained.heatmap,
        question.served.model.labels[answer.explained.target],
        discriminative=question.offer.method.traits.discriminative,
        seen=share_within(answer.size, answer.crop),
    )


def payload(answers: list[Answer], *, top_k: int, resolution: str, request_id: str) -> dict[str, Any]:
    """The JSON answer of `/explain`.

    Args:
        answers: of one image, one a class.
        top_k: classes to list.
        resolution: `layer` or `image`.
        request_id: of the request.

    Returns:
        Plain values, all finite.
    """
    first = answers[0]
    best = top(first, top_k)
    found = {"request_id": request_id, **facts(first), "prediction": best[0], "top": best}
    found |= explained(answers, resolution=resolution)
    return found | {"timing_ms": first.timing_ms, "cached": all(answer.cached for answer in answers)}


def resized(answer: Answer, resolution: str) -> NDArray[np.float32]:
    """The map as the method gives it (`layer`), or stretched bilinearly over what the network sees (`image`)."""
    heatmap = answer.explained.heatmap
    if resolution == "layer":
        return heatmap
    height, width = answer.question.served.model.preprocessing.size
    return np.asarray(Image.fromarray(heatmap).resize((width, height), Image.Resampling.BILINEAR))


def _finite(value: Any) -> Any:
    """A map without positive cells has no centre; JSON has no NaN."""
    if isinstance(value, list):
        return value if all(map(math.isfinite, value)) else None
    return value if math.isfinite(value) else None
