"""Every torch function of a forward pass under one name, however the network spells it, for rules of methods.

A ReLU may be a module, a function, a method, in place, or an operator of an exported program. A TorchFunctionMode sees
all of them in the calling thread only: no module, hook or class is touched, so that the shared model cannot be seen
changed by another thread, and there is nothing to restore. It does not see into TorchScript or a compiled module.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

NORMS = {"batch_norm", "instance_norm", "layer_norm", "group_norm"}
STATISTICS_FIRST = (0, 3, 4, 1, 2, 5, 6, 7)
"""Where `F.batch_norm` and `F.instance_norm` take their arguments from, in an operator's order."""


class FunctionRule(TorchFunctionMode):
    """Hands every torch function of this thread to `rule`, which computes it; to be overridden."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Called by torch in place of every function of tensors."""
        name = name_of(func)
        if name in NORMS and func is not getattr(F, name):
            func, args = getattr(F, name), in_functional_order(name, args)
        return self.rule(name, func, args, kwargs or {})

    def rule(self, name: str, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Computes one torch function.

        Args:
            name: of the function: `add` for `+`, `torch.add` and `aten.add.Tensor`; `add_` in place.
            func: the function.
            args: of the function; those of norms in the order of `torch.nn.functional`.
            kwargs: of the function.

        Returns:
            What takes the place of the function's result.
        """
        return func(*args, **kwargs)


def name_of(func: Callable[..., Any]) -> str:
    """The name of a torch function, without the overload of an operator; operators that are not torch's keep theirs."""
    if isinstance(func, torch._ops.OpOverload):
        space, _, name = func._schema.name.partition("::")
        return name if space == "aten" else func._schema.name
    return getattr(func, "__name__", "")


def in_functional_order(name: str, args: Sequence[Any]) -> list[Any]:
    """Arguments of an operator that normalises, in the order of its namesake in `torch.nn.functional`."""
    if name in ("layer_norm", "group_norm"):
        return list(args[:5])  # the sixth chooses cuDNN
    padded = [*args, *[None] * (5 - len(args))]
    return [padded[place] for place in STATISTICS_FIRST if place < len(padded)]
