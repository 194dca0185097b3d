"""Maps from the gradient at the input. x = input (N, C, H, W), g = d logit / dx; one map is (H, W)."""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.attribution.base import Attribution, Choose, Method, Needs, Traits
from pipeline.attribution.perturbation import chunks, grey, passes_at_once
from pipeline.errors import MethodError
from pipeline.model import LoadedModel


class InputGradients(Method):
    """A map from the input and its gradient: one forward pass, and one backward pass a target."""

    def __call__(self, x: Tensor, choose: Choose, seeds: Tensor | None = None) -> Attribution:
        """See `Method.__call__`; k targets share one forward pass."""
        with torch.enable_grad():
            leaf = channels_last(x.detach()).requires_grad_()
            logits = self.scores(leaf)
        targets = choose(logits.detach())
        maps = [self.combine(x.float(), g) for g in class_gradients(logits, leaf, targets)]
        return Attribution(logits.detach(), targets, torch.stack(maps, dim=1))

    def scores(self, leaf: Tensor) -> Tensor:
        """(N, C, H, W) to (N, K) float32 logits with a gradient graph."""
        return self.model.module(leaf).float()  # type: ignore[no-any-return]

    @abstractmethod
    def combine(self, x: Tensor, g: Tensor) -> Tensor:
        """The method's equation.

        Args:
            x: (N, C, H, W) float32 input.
            g: (N, C, H, W) float32 gradient of the target's logit.

        Returns:
            (N, H, W) float32 maps.
        """


class Gradient(InputGradients):
    """Gradient ("saliency"): max_c |g_c|, or Σ_c g_c with `absolute` off.

    Args:
        model: see `Method`.
        seed: unused.
        absolute: the paper's map, never negative; off gives the signed sum over channels, for sums and differences.
    """

    traits = Traits(Needs.INPUT_GRADIENTS, "1", True, "input", "", "Simonyan et al. 2014, section 3.1")

    def __init__(self, model: LoadedModel, *, seed: int = 0, absolute: bool = True) -> None:
        super().__init__(model, seed=seed)
        self.absolute = absolute

    def combine(self, x: Tensor, g: Tensor) -> Tensor:
        """(N, C, H, W) twice to (N, H, W)."""
        return over_channels(g, absolute=self.absolute)


class InputXGradient(InputGradients):
    """Input x gradient: Σ_c x_c g_c, signed. x is the normalised input, so that zero is the mean colour."""

    traits = Traits(Needs.INPUT_GRADIENTS, "1", True, "input", "", "Shrikumar et al. 2016, section 3.2")

    def combine(self, x: Tensor, g: Tensor) -> Tensor:
        """(N, C, H, W) twice to (N, H, W), signed."""
        return (x * g).sum(dim=1)


class IntegratedGradients(Method):
    """Integrated gradients: Σ_c (x − x')_c ∫ g_c(x' + a (x − x')) da, by the midpoint rule; signed.

    Self-check: the completeness gap |Σ map − (f(x) − f(x'))|, in logits.

    Args:
        model: see `Method`.
        seed: unused.
        steps: points on the path.
        baseline: x' as a grey level in 0..1; None for 0 in normalised space, the mean colour.
        chunk: images of 224 px in one pass, fewer of larger ones; memory grows with it and not with `steps`.
    """

    traits = Traits(
        Needs.INPUT_GRADIENTS,
        "steps + 2",
        True,
        "input",
        "completeness gap in logits",
        "Sundararajan et al. 2017, eq. 1 and 3",
    )

    def __init__(
        self, model: LoadedModel, *, seed: int = 0, steps: int = 50, baseline: float | None = None, chunk: int = 16
    ) -> None:
        super().__init__(model, seed=seed)
        self.steps = at_least_one("steps", steps)
        self.baseline = baseline
        self.chunk = at_least_one("chunk", chunk)

    def __call__(self, x: Tensor, choose: Choose, seeds: Tensor | None = None) -> Attribution:
        """See `Method.__call__`; k targets share the forward passes."""
        logits = predict(self.model, x)
        targets = choose(logits)
        start = self._start(x)
        difference = x.float() - start
        total = torch.zeros(targets.shape[1], *x.shape, device=x.device)
        alphas = (torch.arange(self.steps, device=x.device, dtype=torch.float32) + 0.5) / self.steps
        for part in chunks(self.steps, per_pass(self.chunk, x)):
            points = start + alphas[part].view(-1, 1, 1, 1, 1) * difference
            total += gradients_at(self.model, points.to(x.dtype), targets).sum(dim=1)
        maps = (total / self.steps * difference).sum(dim=2).transpose(0, 1)
        rise = logits.gather(1, targets) - predict(self.model, start.to(x.dtype))[0][targets]
        return Attribution(logits, targets, maps, (maps.sum(dim=(2, 3)) - rise).abs())

    def _start(self, x: Tensor) -> Tensor:
        """x': (1, C, H, W) float32 in normalised units."""
        if self.baseline is None:
            return torch.zeros(1, *x.shape[1:], device=x.device)
        return grey(self.baseline, self.model.preprocessing, x.device).expand(1, *x.shape[1:])


class SmoothedInputXGradient(InputXGradient):
    """S-IxG: input x gradient, its signed map smoothed by a Gaussian of `kernel` x `kernel` px, σ = kernel / 4.

    Args:
        model: see `Method`.
        seed: unused.
        kernel: odd size in px; the paper's best for 224 px is 129.
    """

    traits = Traits(Needs.INPUT_GRADIENTS, "1", True, "input", "", "Rao et al. 2022, section 5.3")

    def __init__(self, model: LoadedModel, *, seed: int = 0, kernel: int = 129) -> None:
        super().__init__(model, seed=seed)
        self.kernel = odd("kernel", kernel)

    def __call__(self, x: Tensor, choose: Choose, seeds: Tensor | None = None) -> Attribution:
        """See `Method.__call__`."""
        found = super().__call__(x, choose, seeds)
        return replace(found, maps=gaussian(found.maps, self.kernel))


class SmoothedIntegratedGradients(IntegratedGradients):
    """S-IntGrad: integrated gradients, smoothed as S-IxG. The completeness gap is that of the map before smoothing.

    Args:
        model: see `Method`.
        seed: unused.
        steps: see `IntegratedGradients`.
        baseline: see `IntegratedGradients`.
        chunk: see `IntegratedGradients`.
        kernel: as in `SmoothedInputXGradient`.
    """

    traits = replace(IntegratedGradients.traits, source="Rao et al. 2022, section 5.3")

    def __init__(
        self,
        model: LoadedModel,
        *,
        seed: int = 0,
        steps: int = 50,
        baseline: float | None = None,
        chunk: int = 16,
        kernel: int = 129,
    ) -> None:
        super().__init__(model, seed=seed, steps=steps, baseline=baseline, chunk=chunk)
        self.kernel = odd("kernel", kernel)

    def __call__(self, x: Tensor, choose: Choose, seeds: Tensor | None = None) -> Attribution:
        """See `Method.__call__`."""
        found = super().__call__(x, choose, seeds)
        return replace(found, maps=gaussian(found.maps, self.kernel))


def predict(model: LoadedModel, x: Tensor) -> Tensor:
    """(N, C, H, W) to (N, K) float32 logits, without a gradient graph."""
    with torch.no_grad():
        return model.module(channels_last(x)).float()  # type: ignore[no-any-return]


def channels_last(x: Tensor) -> Tensor:
    """A copy of the batch in the memory layout in which convolutions and their gradients are fastest (`make bench`)."""
    return x.clone(memory_format=torch.channels_last)


def class_gradients(logits: Tensor, leaf: Tensor, targets: Tensor) -> Iterator[Tensor]:
    """d logit / d leaf for each column of the targets.

    Args:
        logits: (N, K) with a gradient graph.
        leaf: (N, C, H, W).
        targets: (N, k) int64.

    Yields:
        (N, C, H, W) float32.
    """
    columns = targets.shape[1]
    for column in range(columns):
        score = logits.gather(1, targets[:, column : column + 1]).sum()
        (gradient,) = torch.autograd.grad(score, leaf, retain_graph=column + 1 < columns)
        yield gradient.float()


def gradients_at(model: LoadedModel, points: Tensor, targets: Tensor) -> Tensor:
    """Gradients at several inputs for each sample, in one pass.

    Args:
        model: left as it was.
        points: (m, N, C, H, W) in the model's dtype.
        targets: (N, k) int64.

    Returns:
        (k, m, N, C, H, W) float32.
    """
    with torch.enable_grad():
        leaf = channels_last(points.flatten(0, 1)).requires_grad_()
        logits = model.module(leaf).float()
    found = list(class_gradients(logits, leaf, targets.repeat(len(points), 1)))
    return torch.stack(found).view(-1, *points.shape)


def over_channels(g: Tensor, *, absolute: bool) -> Tensor:
    """(N, C, H, W) to (N, H, W): the largest magnitude, or the signed sum."""
    return g.abs().amax(dim=1) if absolute else g.sum(dim=1)


def gaussian(maps: Tensor, kernel: int) -> Tensor:
    """(N, k, H, W) smoothed by a kernel x kernel Gaussian of sum 1, σ = kernel / 4, zeros beyond the border."""
    offsets = torch.arange(kernel, device=maps.device, dtype=maps.dtype) - kernel // 2
    weights = (-0.5 * (offsets / (kernel / 4)) ** 2).exp()
    weights = weights / weights.sum()
    one = maps.flatten(0, 1)[:, None]
    one = F.conv2d(one, weights.view(1, 1, -1, 1), padding=(kernel // 2, 0))
    return F.conv2d(one, weights.view(1, 1, 1, -1), padding=(0, kernel // 2)).view_as(maps)


def per_pass(chunk: int, x: Tensor) -> int:
    """How many variations of a whole batch x fit a pass of `chunk` images; at least one."""
    return max(1, passes_at_once(chunk, x) // max(1, len(x)))


def at_least_one(name: str, value: int) -> int:
    """The value, if it is a positive number.

    Args:
        name: of the parameter.
        value: as given.

    Returns:
        The value.

    Raises:
        MethodError: it is not.
    """
    if value < 1:
        raise MethodError(f"{name} must be at least 1, found {value}")
    return value


def odd(name: str, value: int) -> int:
    """The value, if it is positive and odd.

    Args:
        name: of the parameter.
        value: as given.

    Returns:
        The value.

    Raises:
        MethodError: it is not.
    """
    if value < 1 or value % 2 == 0:
        raise MethodError(f"{name} must be a positive odd number of px, found {value}")
    return value
