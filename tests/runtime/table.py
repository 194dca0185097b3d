"""Compiles every family of `model.families` and writes the table of `deploy/ONNX.md`: `make onnx-table`."""

import re
import sys
import tempfile
from pathlib import Path

import torch
from model.families import FAMILIES, specification

from pipeline import attribution
from pipeline.errors import RaylensError
from pipeline.model import LoadedModel, load
from pipeline.runtime.onnx_file import compile_graph, relative_error
from schemas.graph import GraphSpec

DOCUMENT = Path(__file__).parents[2] / "deploy" / "ONNX.md"
METHODS = ("gradcam", "inputxgradient")
BLOCK = re.compile(r"(<!-- families -->\n).*?(<!-- /families -->)", re.DOTALL)


def cell(family: str, method: str, folder: Path) -> str:
    """The largest relative error against torch, or the reason why there is none."""
    spec = GraphSpec(model=specification(family, FAMILIES[family], folder), method=method)
    try:
        model = load(spec.model)
        error = max(compile_graph(spec, model).errors.values())
        return f"{error:.0e}" if error <= 1e-4 else f"{error:.0e} (torch: {rounding(method, model):.0e})"
    except RaylensError as error:
        return f"no: {reason(str(error))}"


def rounding(method: str, model: LoadedModel) -> float:
    """The same error of torch in float32 against float64, over more images: where a ReLU is at zero both are large."""
    x = torch.randn(
        16, model.preprocessing.channels, *model.preprocessing.size, generator=torch.Generator().manual_seed(0)
    )
    bound = attribution.create(method, model)
    single = bound(x, lambda logits: logits.argmax(dim=1, keepdim=True))
    model.module.double()
    double = bound(x.double(), lambda logits: single.targets)
    return relative_error(single.maps.numpy(), double.maps.numpy())


def reason(message: str) -> str:
    found = message.partition("cannot be compiled: ")[2].partition("; --runtime")[0] or message.partition(": ")[2]
    return " ".join(found.replace("|", "/").split())[:120]


def rows(families: list[str]) -> list[str]:
    found = []
    for family in families:
        with tempfile.TemporaryDirectory() as folder:
            cells = [cell(family, method, Path(folder)) for method in METHODS]
        found.append(f"| {family} | {' | '.join(cells)} |")
        sys.stderr.write(found[-1] + "\n")
    return found


def main() -> None:
    torch.set_num_threads(1)
    if wanted := sys.argv[1:]:
        rows(wanted)
        return
    head = [f"| model | {' | '.join(METHODS)} |", f"|---|{'---|' * len(METHODS)}"]
    table = "\n".join([*head, *rows(list(FAMILIES))]) + "\n"
    DOCUMENT.write_text(BLOCK.sub(lambda found: found[1] + table + found[2], DOCUMENT.read_text()))


if __name__ == "__main__":
    main()
