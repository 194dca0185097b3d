"""Statistics of the gradient over noisy copies of the input. x = input (N, C, H, W), g = d logit / dx."""

from collections.abc import Iterator

import torch
from torch import Tensor

from pipeline.attribution.base import Attribution, Choose, Method, Needs, Traits, generator
from pipeline.attribution.gradient import at_least_one, gradients_at, over_channels, per_pass, predict
from pipeline.attribution.perturbation import chunks
from pipeline.model import LoadedModel


class Noisy(Method):
    """Statistics of the gradient over noisy copies of the input, drawn from (seed, sample seed).

    Args:
        model: see `Method`.
        seed: of the job.
        samples: noisy copies.
        noise: standard deviation of the noise, as a share of each image's max − min (paper: 0.1 to 0.2).
        chunk: images of 224 px in one pass, fewer of larger ones; memory grows with it and not with `samples`.
    """

    def __init__(
        self, model: LoadedModel, *, seed: int = 0, samples: int = 50, noise: float = 0.15, chunk: int = 16
    ) -> None:
        super().__init__(model, seed=seed)
        self.samples = at_least_one("samples", samples)
        self.noise = noise
        self.chunk = at_least_one("chunk", chunk)

    def draw(self, x: Tensor, seeds: Tensor | None) -> Iterator[Tensor]:
        """Noisy inputs, a few at a time.

        Args:
            x: (N, C, H, W).
            seeds: (N,) or None.

        Yields:
            (m, N, C, H, W) in the dtype of x.
        """
        samples = [0] * len(x) if seeds is None else [int(s) for s in seeds.tolist()]
        sources = [generator(self.seed, sample) for sample in samples]
        spread = x.float().flatten(1)
        sigma = (self.noise * (spread.amax(dim=1) - spread.amin(dim=1))).view(-1, 1, 1, 1)
        for part in chunks(self.samples, per_pass(self.chunk, x)):
            count = part.stop - part.start
            # One image at a time: a generator asked for 2 x 8 numbers may not answer as if asked for 8 twice.
            draws = [torch.stack([torch.randn(x.shape[1:], generator=s) for s in sources]) for _ in range(count)]
            yield (x.float() + sigma * torch.stack(draws).to(x.device)).to(x.dtype)


class SmoothGrad(Noisy):
    """SmoothGrad: the mean gradient over noisy copies, then max_c |·|, or Σ_c with `absolute` off.

    Args:
        model: see `Method`.
        seed: of the job.
        samples: see `Noisy`.
        noise: see `Noisy`.
        chunk: see `Noisy`.
        absolute: as in `Gradient`.
    """

    traits = Traits(Needs.INPUT_GRADIENTS, "samples + 1", True, "input", "", "Smilkov et al. 2017, section 3")

    def __init__(
        self,
        model: LoadedModel,
        *,
        seed: int = 0,
        samples: int = 50,
        noise: float = 0.15,
        chunk: int = 16,
        absolute: bool = True,
    ) -> None:
        super().__init__(model, seed=seed, samples=samples, noise=noise, chunk=chunk)
        self.absolute = absolute

    def __call__(self, x: Tensor, choose: Choose, seeds: Tensor | None = None) -> Attribution:
        """See `Method.__call__`; the targets are those of the clean image."""
        logits = predict(self.model, x)
        targets = choose(logits)
        mean = torch.zeros(targets.shape[1], *x.shape, device=x.device)
        for noisy in self.draw(x, seeds):
            mean += gradients_at(self.model, noisy, targets).sum(dim=1) / self.samples
        maps = torch.stack([over_channels(g, absolute=self.absolute) for g in mean], dim=1)
        return Attribution(logits, targets, maps)


class VarGrad(Noisy):
    """VarGrad: Σ_c Var(g_c) over noisy copies; never negative.

    The variance is the population's (divided by `samples`), accumulated by Welford's recurrence, which does not
    subtract two large numbers. The paper gives the variance of each component; the sum over channels is ours.
    """

    traits = Traits(Needs.INPUT_GRADIENTS, "samples + 1", True, "input", "", "Adebayo et al. 2018, appendix A")

    def __call__(self, x: Tensor, choose: Choose, seeds: Tensor | None = None) -> Attribution:
        """See `Method.__call__`; the targets are those of the clean image."""
        logits = predict(self.model, x)
        targets = choose(logits)
        mean = torch.zeros(targets.shape[1], *x.shape, device=x.device)
        squares = torch.zeros_like(mean)
        count = 0
        for noisy in self.draw(x, seeds):
            for g in gradients_at(self.model, noisy, targets).unbind(dim=1):
                count += 1
                step = g - mean
                mean += step / count
                squares += step * (g - mean)
        return Attribution(logits, targets, (squares / self.samples).sum(dim=2).transpose(0, 1))
