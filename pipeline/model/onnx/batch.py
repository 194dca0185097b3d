"""Files that fix their batch: the fixed number is a trace of the export, or else the graph runs in a loop."""

from collections.abc import Sequence

import torch
from torch import nn

from pipeline.model.dry_run import noise, observe
from pipeline.model.faults import of_the_machine
from pipeline.model.layers import choose, submodule_name
from pipeline.model.onnx.file import OnnxFile
from pipeline.model.onnx.lowering import lower
from pipeline.model.onnx.network import Chunked, Network, Steps
from pipeline.model.onnx.signature import Signature
from pipeline.model.onnx.steps import Step

USUAL_SIZE = (224, 224)
TOLERANCE = 1e-4


def freed_network(
    file: OnnxFile, signature: Signature, size: tuple[int, int] | None, fixed: nn.Module
) -> Network | None:
    """The network with an open batch, if that gives what the fixed one gives for each batch.

    Args:
        file: the file.
        signature: of its graph.
        size: of the input in px.
        fixed: the network as the file states it.

    Returns:
        The network, or None where its shapes do not follow the batch.
    """
    rows = signature.rows or 1
    network = Network(lower(file, signature, freed=True), signature, file.sha256).eval()
    x = noise(fixed, 2 * rows + 1, signature.channels, size or USUAL_SIZE)
    try:
        with torch.no_grad():
            expected = torch.cat([fixed(part) for part in (x[:rows], x[rows : 2 * rows])])
            found = network(x)[: 2 * rows]
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        if of_the_machine(error):
            raise
        return None
    same = found.shape == expected.shape and torch.allclose(
        found, expected, rtol=0, atol=TOLERANCE * float(expected.abs().max())
    )
    return network if same else None


def looped(
    steps: Sequence[Step], signature: Signature, sha256: str, size: tuple[int, int] | None, layer: str | None
) -> Network:
    """Two parts that run in a loop, below and above the target layer, so that its output holds the whole batch.

    Args:
        steps: of the graph.
        signature: of the graph.
        sha256: of the file.
        size: of the input in px.
        layer: the layer that the job names, or None.

    Returns:
        The network.
    """
    rows = signature.rows or 1
    plain = Network(steps, signature, sha256).eval()
    seen, _ = observe(plain, noise(plain, rows, signature.channels, size or USUAL_SIZE))
    named = layer and submodule_name(plain, layer)
    target = choose(seen, name=named if any(o.name == named for o in seen) else None).name
    cut = next(i for i, step in enumerate(steps) if step.name == target) + 1
    return Network(split(steps, cut, signature, rows), signature, sha256)


def split(steps: Sequence[Step], cut: int, signature: Signature, rows: int) -> list[Step]:
    """The steps before and behind a cut as two, each in a loop.

    Args:
        steps: of the graph.
        cut: steps of the lower part.
        signature: of the graph.
        rows: images a call.

    Returns:
        Two steps; the first is named as its last step was.
    """
    last = steps[cut - 1]
    passed = crossing(steps, cut, signature)
    below = Chunked(Steps(steps[:cut], [signature.feed], passed), rows)
    above = Chunked(Steps(steps[cut:], passed, [signature.result]), rows)
    return [
        Step(last.name, last.operator, below, (signature.feed,), tuple(passed), last.called),
        Step(f"{last.name}_to_logits", "", above, tuple(passed), (signature.result,), ()),
    ]


def crossing(steps: Sequence[Step], cut: int, signature: Signature) -> list[str]:
    """Values that steps behind a cut read, computed before it; the output of the last step before it comes first."""
    read = {name for step in steps[cut:] for name in step.reads} | {signature.result}
    made = [signature.feed, *(name for step in steps[:cut] for name in step.outputs)]
    first = steps[cut - 1].outputs[0]
    return [first, *(name for name in made if name in read and name != first)]
