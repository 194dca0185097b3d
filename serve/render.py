"""Answers as files: a picture with the map over it, a NumPy array, an Arrow table."""

import io
import json
from urllib.parse import quote

import matplotlib as mpl
import numpy as np
import pyarrow as pa

from pipeline.report.overlay import OPACITY, overlay
from pipeline.report.photograph import rgb
from serve import answers
from serve.problems import RefusedError
from serve.service import Answer

FACTS = (
    "model", "method", "layer", "graph_digest", "prediction", "label", "score", "target", "target_label",
    "target_score", "crop", "sentence", "cached", "timing_ms",
)  # fmt: skip
"""What the headers say of an answer whose body has no place for it."""


def header(fact: str) -> str:
    """The header of a fact."""
    return f"X-Raylens-{fact.replace('_', '-').title()}"


def check_colormap(name: str) -> str:
    """The name of a colour map.

    Args:
        name: of matplotlib.

    Returns:
        The name.

    Raises:
        RefusedError: `unknown_option`.
    """
    if name not in mpl.colormaps:
        raise RefusedError(
            "unknown_option", f"no colormap is named {name[:50]!r}; jet, turbo, viridis, magma, ... of matplotlib are"
        )
    return name


def png(answer: Answer, *, colormap: str = "jet", opacity: float = OPACITY, signed: bool = True) -> bytes:
    """The map over what the network sees.

    Args:
        answer: with its picture.
        colormap: of maps without negative cells.
        opacity: 0..1.
        signed: show what speaks against the class, too.

    Returns:
        A PNG of the network's input size.
    """
    image = rgb(answer.picture.pixels)
    heatmap = answer.explained.heatmap if signed else answer.explained.heatmap.clip(min=0)
    buffer = io.BytesIO()
    overlay(image, heatmap, colormap=colormap, opacity=opacity).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def npy(found: list[Answer], *, resolution: str) -> bytes:
    """Maps as float32: (h, w), or (K, h, w) for several classes."""
    maps = [answers.resized(answer, resolution) for answer in found]
    buffer = io.BytesIO()
    np.save(buffer, maps[0] if len(maps) == 1 else np.stack(maps), allow_pickle=False)
    return buffer.getvalue()


def arrow(found: list[Answer], *, resolution: str, top_k: int) -> bytes:
    """An Arrow stream with a row a class; columns as in a job's explanations, facts in the schema's metadata."""
    best = [answers.top(answer, top_k) for answer in found]
    maps = np.stack([answers.resized(answer, resolution) for answer in found])
    targets = [answers.named(answer, answer.explained.target) for answer in found]
    columns = {
        "width": pa.array([answer.size[0] for answer in found], pa.int32()),
        "height": pa.array([answer.size[1] for answer in found], pa.int32()),
        "prediction": pa.array([rows[0]["class"] for rows in best], pa.int32()),
        "prediction_name": pa.array([rows[0]["label"] for rows in best], pa.string()),
        "score": pa.array([rows[0]["score"] for rows in best], pa.float32()),
        "top": pa.array([[row["class"] for row in rows] for rows in best], pa.list_(pa.int32())),
        "top_scores": pa.array([[row["score"] for row in rows] for rows in best], pa.list_(pa.float32())),
        "target": pa.array([target["class"] for target in targets], pa.int32()),
        "target_score": pa.array([target["score"] for target in targets], pa.float32()),
        "heatmap": pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(maps)),
    }
    facts = {f"raylens.{name}": value for name, value in answers.facts(found[0]).items()}
    table = pa.table(columns).replace_schema_metadata(facts)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def headers(answer: Answer) -> dict[str, str]:
    """`FACTS` as headers; values other than ASCII are percent-encoded."""
    prediction = answers.top(answer, 1)[0]
    target = answers.named(answer, answer.explained.target)
    values = {
        **answers.facts(answer),
        "prediction": prediction["class"],
        "label": prediction["label"],
        "score": f"{prediction['score']:.6f}",
        "target": target["class"],
        "target_label": target["label"],
        "target_score": f"{target['score']:.6f}",
        "crop": json.dumps([round(side, 2) for side in answer.crop]),
        "sentence": answers.said(answer),
        "cached": str(answer.cached).lower(),
        "timing_ms": ", ".join(f"{stage}={value:.2f}" for stage, value in answer.timing_ms.items()),
    }
    safe = " !#$&'()*+,/:;=?@[]|%\"<>^`{}~"
    return {header(name): quote(str(values[name]), safe=safe) for name in FACTS}
