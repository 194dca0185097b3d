"""Meta-saliency: any method, after one gradient step on the image itself."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline import attribution
from pipeline.attribution.base import Attribution, Choose, Method, Needs, Traits, private_copy, probe, without_gradient
from pipeline.attribution.gradient import predict
from pipeline.errors import MethodError
from pipeline.model import LoadedModel


class MetaSaliency(Method):
    """Meta-saliency: a method's map with weights θ' = θ − rate · ∇_θ CE(f(x), target), one step for each map.

    The step is taken on a private copy of the network, not through `torch.func.functional_call`: that one swaps the
    parameters inside the shared module while it runs, where another thread would see them. The copy is made once, is in
    float32 (a step of 1e-4 is lost in half precision), and is used by one thread at a time. Logits and targets are
    those of the shared model. Sign and resolution are the inner method's.

    Cost: a forward and a backward pass and the inner method for every image and target, since each has weights of its
    own; images are not batched.

    Args:
        model: see `Method`.
        seed: of the job.
        method: key of `METHODS`, but not `meta`.
        rate: of the step; 1e-4 in the official code, 2.5e-3 in the paper's experiments.
        parameters: of the inner method.

    Raises:
        MethodError: the inner method does not exist or does not fit the model.
    """

    traits = Traits(
        Needs.LAYER_GRADIENTS, "k (2 + inner)", True, "layer", "the inner method's", "Rebuffi et al. 2020, section 3.3"
    )

    @classmethod
    def unsuited(cls, model: LoadedModel) -> str | None:
        """Refuses a network that cannot be copied, or whose score has no gradient at any weight."""
        try:
            network = private_copy(model.module).float()
        except MethodError as error:
            return str(error)
        weights = [p.requires_grad_() for p in network.parameters() if p.is_floating_point()]
        with torch.enable_grad():
            lost = without_gradient(network(probe(model).float()), weights)
        return "its score has no gradient at its weights" if lost == len(weights) else None

    def __init__(
        self,
        model: LoadedModel,
        *,
        seed: int = 0,
        method: str = "gradcam",
        rate: float = 1e-4,
        parameters: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(model, seed=seed)
        if method == "meta":
            raise MethodError("meta wraps another method, found method='meta'")
        self.rate = rate
        self._network = private_copy(model.module).float()
        self._inner = attribution.create(
            method, replace(model, module=self._network), seed=seed, **dict(parameters or {})
        )
        self._lock = threading.Lock()

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of one map."""
        return self._inner.shape

    def __call__(self, x: Tensor, choose: Choose, seeds: Tensor | None = None) -> Attribution:
        """See `Method.__call__`."""
        logits = predict(self.model, x)
        targets = choose(logits)
        with self._lock:
            rows = [
                self._explain(x[n : n + 1].float(), targets[n], None if seeds is None else seeds[n : n + 1])
                for n in range(len(x))
            ]
        checks = [check for _, check in rows if check is not None]
        maps = torch.stack([maps for maps, _ in rows])
        return Attribution(logits, targets, maps, torch.stack(checks) if checks else None)

    def _explain(self, x: Tensor, targets: Tensor, seeds: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """One image (1, C, H, W) and its (k,) targets to (k, h, w) maps and (k,) checks."""
        found = []
        for target in targets:
            with self._stepped(x, target.view(1)):
                found.append(self._inner(x, lambda _, target=target: target.view(1, 1), seeds))  # type: ignore[misc]
        maps = torch.cat([f.maps[0] for f in found])
        checks = [f.check[0] for f in found if f.check is not None]
        return maps, torch.cat(checks) if checks else None

    @contextmanager
    def _stepped(self, x: Tensor, target: Tensor) -> Iterator[None]:
        """The private network with θ' inside the block, and with θ after it."""
        parameters = [p for p in self._network.parameters() if p.is_floating_point()]
        before = [p.detach().clone() for p in parameters]
        try:
            for p in parameters:
                p.requires_grad_()
            with torch.enable_grad():
                loss = F.cross_entropy(self._network(x), target)
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            for p, g in zip(parameters, gradients, strict=True):
                p.requires_grad_(False)
                if g is not None:
                    p.sub_(self.rate * g)
            yield
        finally:
            for p, value in zip(parameters, before, strict=True):
                p.requires_grad_(False)
                p.copy_(value)
