"""`raylens compile`: one ONNX file that predicts and explains, and what its user has to know."""

from pathlib import Path

import onnx
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.errors import OutputError
from pipeline.graph import ExplanationGraph
from pipeline.model import LoadedModel
from pipeline.runtime.onnx_file import Compiled, Pixels, compile_graph
from schemas.job import JobSpec


def compile_file(spec: JobSpec, path: Path, *, pixels: Pixels = "uint8") -> Compiled:
    """Compiles a graph, writes the file and prints its inputs, outputs and errors.

    Args:
        spec: model and method.
        path: of the file; written only when all went well.
        pixels: type and layout of the images, see `compile_graph`.

    Returns:
        What was written.

    Raises:
        OutputError: the file cannot be written.
    """
    if not path.parent.is_dir():
        raise OutputError(f"{path} cannot be written: {path.parent} is no folder; create it")
    graph = ExplanationGraph(
        spec.graph_spec("cpu").model_copy(update={"runtime": "onnx", "batch_size": 1}), spec.storage
    )
    with Console(stderr=True).status(f"compiling {escape(spec.method)} on {escape(spec.model)}"):
        found = compile_graph(graph.spec, graph.model, pixels=pixels, storage=spec.storage, digest=graph.digest)
    try:
        path.write_bytes(found.content)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error
    _print(path, found, graph.model)
    return found


def _print(path: Path, found: Compiled, model: LoadedModel) -> None:
    proto = onnx.load_from_string(found.content)
    table = Table("", "name", "type", "shape", "largest error", title=None)
    for kind, values in (("in", proto.graph.input), ("out", proto.graph.output)):
        for value in values:
            tensor = value.type.tensor_type
            shape = " x ".join(d.dim_param or str(d.dim_value) for d in tensor.shape.dim)
            error = f"{found.errors[value.name]:.0e}" if kind == "out" and value.name in found.errors else ""
            table.add_row(kind, value.name, onnx.TensorProto.DataType.Name(tensor.elem_type).lower(), shape, error)
    console = Console()
    console.print(
        f"[bold]{escape(str(path))}[/]: {len(found.content) / 1e6:.1f} MB, opset {proto.opset_import[0].version}"
    )
    console.print(table)
    console.print(
        f"errors: against torch in float32, as a share of the largest value; layer {escape(model.layer.name)}"
    )
    how = model.preprocessing
    console.print(
        f"images: resized to {how.resize[1]} x {how.resize[0]} ({how.resize_mode}, {how.interpolation}), cropped to "
        f"{how.size[1]} x {how.size[0]}; normalisation is inside",
        soft_wrap=True,
    )
