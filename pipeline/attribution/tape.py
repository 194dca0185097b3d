"""The part of a network above its target layer, as a function of that layer's output for one image.

The part below need not run again, but a forward hook cannot skip it. So the operations above the layer are recorded
once, while the network runs, and are replayed on other outputs. Nothing is traced symbolically and nothing is compiled.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.weak import WeakIdKeyDictionary

from pipeline.attribution.base import hooked
from pipeline.model import LoadedModel
from pipeline.model.dry_run import with_tensor
from pipeline.model.faults import of_the_machine


@dataclass(frozen=True)
class Slot:
    """A place for a tensor that a replay computes."""

    index: int


@dataclass(frozen=True)
class Step:
    """One recorded operation: arguments hold slots for tensors that depend on the layer's output.

    Attributes:
        function: the operator.
        arguments: positional and keyword arguments.
        outputs: slot of each tensor it returns, flattened.
        finished: slots that no later step reads.
    """

    function: Callable[..., Any]
    arguments: tuple[Sequence[Any], Mapping[str, Any]]
    outputs: tuple[int, ...]
    finished: tuple[int, ...] = ()


class Unrepeatable(Exception):  # noqa: N818
    """The network did something that a replay cannot repeat."""


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records this thread's operators that depend on a tensor, directly or not."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[Step] = []
        self._slots: Any = WeakIdKeyDictionary()
        self._count = 0

    def begin(self, tensor: Tensor) -> None:
        """Forgets what was recorded and follows this tensor."""
        self.steps.clear()
        self._slots.clear()
        self._count = 0
        self.slot(tensor)

    def slot(self, tensor: Tensor) -> int:
        """The tensor's slot; a new one where it has none."""
        if tensor not in self._slots:
            self._slots[tensor] = self._count
            self._count += 1
        return int(self._slots[tensor])

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called by torch in place of every operator."""
        kwargs = kwargs or {}
        leaves, structure = tree_flatten((args, kwargs))
        followed = [isinstance(leaf, Tensor) and leaf in self._slots for leaf in leaves]
        output = func(*args, **kwargs)
        if any(followed):
            self._refuse(func, leaves, followed, output)
            held = [Slot(self.slot(leaf)) if mine else leaf for leaf, mine in zip(leaves, followed, strict=True)]
            results = [leaf for leaf in tree_flatten(output)[0] if isinstance(leaf, Tensor)]
            slots = tuple(self.slot(result) for result in results)
            self.steps.append(Step(func, tree_unflatten(held, structure), slots))
        return output

    def _refuse(self, func: Any, leaves: list[Any], followed: list[bool], output: Any) -> None:
        """Raises where a replay would differ: a value read into Python, or a write to a tensor from below."""
        if not any(isinstance(leaf, Tensor) for leaf in tree_flatten(output)[0]):
            raise Unrepeatable(f"{func} reads a value")
        first = next(i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor))
        if func._schema.is_mutable and not followed[first]:
            raise Unrepeatable(f"{func} writes to a tensor that the layer did not produce")


def with_last_uses(steps: Sequence[Step], result: int) -> list[Step]:
    """The steps with `finished` filled in, so that a replay holds no tensor longer than the network does."""
    seen = {result}
    found = []
    for step in reversed(steps):
        reads = {leaf.index for leaf in tree_flatten(step.arguments)[0] if isinstance(leaf, Slot)}
        last = (reads | set(step.outputs)) - seen
        seen |= last
        found.append(Step(step.function, step.arguments, step.outputs, tuple(last)))
    return found[::-1]


def replay(steps: Sequence[Step], start: Tensor, result: int) -> Tensor:
    """Runs recorded steps on another tensor.

    Args:
        steps: of `with_last_uses`.
        start: takes the place of the tensor that was followed; same shape, may be overwritten.
        result: slot to return.

    Returns:
        That slot's tensor.
    """
    values: dict[int, Tensor] = {0: start}
    for step in steps:
        args, kwargs = tree_map(lambda leaf: values[leaf.index] if isinstance(leaf, Slot) else leaf, step.arguments)
        output = step.function(*args, **kwargs)
        results = [leaf for leaf in tree_flatten(output)[0] if isinstance(leaf, Tensor)]
        values.update(zip(step.outputs, results, strict=True))
        for index in step.finished:
            del values[index]
    return values[result]


class UpperPart:
    """Scores as a function of the target layer's output, for one image.

    The first call runs the network with the layer's output replaced by the given batch, and records what follows; later
    calls of the same size replay that. Where a replay is not possible, or the network joins the layer's output with a
    tensor from below in a way that does not broadcast over the batch, every call runs the whole network on copies.

    Every batch must begin with the layer's true output: its score proves each call.

    Args:
        model: left as it was.
        x: (1, C, H, W) the image.
        logits: (K,) of the image.
    """

    def __init__(self, model: LoadedModel, x: Tensor, logits: Tensor) -> None:
        self._model = model
        self._x = x
        self._logits = logits
        self._tape: list[Step] | None = None
        self._result = 0
        self._shape: torch.Size | None = None
        self.whole = False
        """Whether the part below runs in every call."""

    def __call__(self, output: Tensor) -> Tensor:
        """(M, ...) layer outputs, the first one true, to (M, K) float32 logits."""
        if not self.whole:
            logits = self._upper(output.clone())  # an in-place operation must not reach the second try
            if logits is not None and _same(logits[0], self._logits, output.dtype):
                return logits
            self.whole = True
        return self._run(self._x.expand(len(output), -1, -1, -1), output)

    def _upper(self, output: Tensor) -> Tensor | None:
        """By replay, or the recording run; None where that is not possible."""
        if self._tape is not None and output.shape == self._shape:
            return replay(self._tape, output, self._result).float()
        recorder = Recorder()
        try:
            logits = self._run(self._x, output, recorder)
        except (Unrepeatable, RuntimeError) as error:
            if of_the_machine(error):  # the whole run takes more memory
                raise
            return None  # shapes that do not broadcast; a fault of the network is raised by the whole run
        return logits if len(logits) == len(output) else None

    def _run(self, x: Tensor, output: Tensor, recorder: Recorder | None = None) -> Tensor:
        """The network on x with the layer's output replaced."""

        def replace(_module: nn.Module, _args: object, found: Any) -> Any:
            if recorder is not None:
                recorder.begin(output)
            return with_tensor(found, output)

        layer = self._model.module.get_submodule(self._model.layer.name)
        with torch.no_grad(), hooked(layer, replace):
            if recorder is None:
                return self._model.module(x).float()  # type: ignore[no-any-return]
            with recorder:
                logits: Tensor = self._model.module(x)
            self._keep(recorder, logits, output.shape)
            return logits.float()

    def _keep(self, recorder: Recorder, logits: Tensor, shape: torch.Size) -> None:
        self._result = recorder.slot(logits)
        self._tape = with_last_uses(recorder.steps, self._result)
        self._shape = shape


def _same(found: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    """Equal up to the rounding of the model's arithmetic, which may differ with the batch size."""
    tolerance = torch.finfo(dtype).eps ** 0.5 * expected.abs().max()
    return bool((found - expected).abs().max() <= tolerance)
