"""Additive models of the score over superpixels: LIME and KernelSHAP.

The image is cut into SLIC superpixels; a coalition z in {0, 1}^m keeps some of them and hides the others. Coalitions
depend on the job's and the sample's seed only.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from skimage.segmentation import slic
from torch import Tensor

from pipeline.attribution.base import Needs, Traits, generator
from pipeline.attribution.perturbation import Perturbation, Score, require
from pipeline.model import LoadedModel, Preprocessing

Hide = Literal["baseline", "superpixel"]


def superpixels(x: Tensor, preprocessing: Preprocessing, *, count: int, zero: bool = False) -> Tensor:
    """Cuts each image into superpixels, on its colours before normalisation (Achanta et al. 2012).

    Args:
        x: (N, C, H, W) model input.
        preprocessing: that made it.
        count: wanted number of superpixels; SLIC gives about as many.
        zero: SLICO, which adapts the compactness to each superpixel.

    Returns:
        (N, H, W) int64 on x's device; every image uses 0..m-1 without gaps, m differs between images.
    """
    images = preprocessing.denormalise(x.float()).clamp(0, 1).permute(0, 2, 3, 1).double().cpu().numpy()
    colour = images.shape[-1] == 3
    options = {"n_segments": count, "slic_zero": zero, "start_label": 0, "channel_axis": -1, "convert2lab": colour}
    labels = [slic(image, **options) for image in images]
    dense = [np.unique(label, return_inverse=True)[1].reshape(label.shape) for label in labels]
    return torch.from_numpy(np.stack(dense)).to(x.device)


def mean_colours(image: Tensor, labels: Tensor) -> Tensor:
    """(C, H, W) with every pixel replaced by its superpixel's mean; labels (H, W)."""
    flat, index = image.flatten(1).float(), labels.flatten()
    count = int(labels.max()) + 1
    sums = flat.new_zeros(len(flat), count).index_add_(1, index, flat)
    sizes = torch.bincount(index, minlength=count)
    return (sums / sizes)[:, index].view_as(image).to(image.dtype)


@dataclass(frozen=True)
class Coalitions:
    """Sampled coalitions of one image.

    Attributes:
        z: (S, m) bool, True keeps a superpixel.
        weights: (S,) float64.
    """

    z: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Observed:
    """Scores of one image.

    Attributes:
        scores: (S, k) float64, of the coalitions.
        full: (k,) float64, nothing hidden.
        empty: (k,) float64, everything hidden.
    """

    scores: Tensor
    full: Tensor
    empty: Tensor


class AdditiveModel(Perturbation):
    """Draws coalitions of superpixels, scores them, fits one coefficient a superpixel, and paints it.

    Args:
        model: the model to explain.
        seed: of the job.
        segments: wanted number of superpixels.
        samples: coalitions an image.
        hide: a hidden superpixel takes the `baseline`, or its own mean colour (`superpixel`).
        chunk: forwards at a time; see `Perturbation`.
        score: `probability` or `logit`.
        baseline: see `Perturbation`; read where hide is `baseline`.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        seed: int = 0,
        segments: int = 50,
        samples: int = 1000,
        hide: Hide = "baseline",
        chunk: int | None = None,
        score: Score = "logit",
        baseline: float | None = None,
    ) -> None:
        super().__init__(model, seed=seed, chunk=chunk, score=score, baseline=baseline)
        require(segments >= 1, f"segments must be 1 or more, found {segments}")
        require(samples >= 2, f"samples must be 2 or more, found {samples}")
        require(hide in get_args(Hide), f"hide must be one of {get_args(Hide)}, found {hide!r}")
        self.segments = segments
        self.samples = samples
        self.hide = hide

    def explain(self, x: Tensor, logits: Tensor, targets: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor | None]:
        """See `Perturbation.explain`; images differ in their superpixels and are taken one by one."""
        labels = superpixels(x, self.model.preprocessing, count=self.segments)
        full = self.values(logits).gather(1, targets)
        found = [self._one(x[i : i + 1], labels[i], targets[i : i + 1], full[i], int(seeds[i])) for i in range(len(x))]
        maps, fits = zip(*found, strict=True)
        return torch.stack(maps), torch.stack(fits)

    def _one(self, x: Tensor, labels: Tensor, targets: Tensor, full: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        count = int(labels.max()) + 1
        coalitions = self.draw(count, generator(self.seed, seed))
        fill = mean_colours(x[0], labels)[None] if self.hide == "superpixel" else self.fill(x)
        z = torch.cat([coalitions.z, torch.zeros(1, count, dtype=torch.bool)]).to(x.device)  # the last hides everything
        scores = torch.cat(
            [self.masked_scores(x, z[part][:, labels].float(), targets, fill=fill)[0] for part in self.parts(len(z), x)]
        ).cpu()
        observed = Observed(scores[:-1], full.cpu(), scores[-1])
        phi, intercept = self.fit(coalitions, observed)
        fitted = intercept + coalitions.z.double() @ phi
        quality = explained(observed.scores, fitted, coalitions.weights)
        return phi.T.to(x.device)[:, labels], quality.to(x.device)

    @abstractmethod
    def draw(self, count: int, random: torch.Generator) -> Coalitions:
        """Coalitions of `count` superpixels."""

    @abstractmethod
    def fit(self, coalitions: Coalitions, observed: Observed) -> tuple[Tensor, Tensor]:
        """Coefficients (m, k) and intercepts (k,) of the additive model, float64."""


def explained(scores: Tensor, fitted: Tensor, weights: Tensor) -> Tensor:
    """Weighted share of the variance that a fit explains, R²; 1 where nothing varies.

    Args:
        scores: (S, k).
        fitted: (S, k).
        weights: (S,).

    Returns:
        (k,), at most 1.
    """
    share = (weights / weights.sum())[:, None]
    centred = scores - (share * scores).sum(dim=0)
    variance = (share * centred**2).sum(dim=0)
    error = (share * (scores - fitted) ** 2).sum(dim=0)
    floor = torch.finfo(scores.dtype).eps * (share * scores**2).sum(dim=0)
    return torch.where(variance > floor, 1 - error / variance.clamp_min(torch.finfo(scores.dtype).tiny), 1.0)


class LIME(AdditiveModel):
    """LIME: ridge regression of f_c on random coalitions, weighted by their nearness to the whole image.

    z is Bernoulli(1/2), the first coalition keeps everything; π(z) = exp(-D² / σ²), D the cosine distance of z to the
    whole. Coefficients are painted on their superpixels; positive ones speak for the target.

    Departures: SLIC instead of quickshift; all superpixels stay in the regression (K-Lasso only selects what to show);
    the official code takes the square root of π, which is σ times √2.

    Args:
        model: the model to explain.
        seed: of the job.
        segments: wanted number of superpixels.
        samples: coalitions an image.
        width: σ.
        ridge: penalty on the coefficients; the intercept has none.
        hide: the official code hides a superpixel under its own mean colour.
        chunk: forwards at a time; see `Perturbation`.
        score: `probability` as in the paper, or `logit`.
        baseline: see `Perturbation`; read where hide is `baseline`.
    """

    traits = Traits(
        Needs.SCORES,
        "samples + 2",
        True,
        "input",
        "weighted R² of the additive model",
        "Ribeiro et al. 2016, eq. 2 and section 3.4",
    )

    def __init__(
        self,
        model: LoadedModel,
        *,
        seed: int = 0,
        segments: int = 50,
        samples: int = 1000,
        width: float = 0.25,
        ridge: float = 1.0,
        hide: Hide = "superpixel",
        chunk: int | None = None,
        score: Score = "probability",
        baseline: float | None = None,
    ) -> None:
        super().__init__(
            model,
            seed=seed,
            segments=segments,
            samples=samples,
            hide=hide,
            chunk=chunk,
            score=score,
            baseline=baseline,
        )
        require(width > 0, f"width must be positive, found {width}")
        require(ridge >= 0, f"ridge must be 0 or more, found {ridge}")
        self.width = width
        self.ridge = ridge

    def draw(self, count: int, random: torch.Generator) -> Coalitions:
        """See `AdditiveModel.draw`."""
        z = torch.rand(self.samples, count, generator=random) < 0.5
        z[0] = True
        cosine = (z.double().sum(dim=1) / count).sqrt()  # z · 1 / (‖z‖ ‖1‖)
        return Coalitions(z, torch.exp(-((1 - cosine) ** 2) / self.width**2))

    def fit(self, coalitions: Coalitions, observed: Observed) -> tuple[Tensor, Tensor]:
        """See `AdditiveModel.fit`: ridge regression with a free intercept."""
        z, share = coalitions.z.double(), (coalitions.weights / coalitions.weights.sum())[:, None]
        z_mean, y_mean = (share * z).sum(dim=0), (share * observed.scores).sum(dim=0)
        root = coalitions.weights.sqrt()[:, None]
        penalty = math.sqrt(self.ridge) * torch.eye(z.shape[1], dtype=z.dtype)
        phi = least_squares(
            torch.cat([root * (z - z_mean), penalty]),
            torch.cat([root * (observed.scores - y_mean), torch.zeros_like(penalty[:, :1]).expand(-1, len(y_mean))]),
        )
        return phi, y_mean - z_mean @ phi


class KernelSHAP(AdditiveModel):
    """KernelSHAP: Shapley values of the superpixels by least squares under Σφ = f_c(x) - f_c(hidden).

    π(z) = (m - 1) / (C(m, |z|) |z| (m - |z|)). All coalitions are scored, with π as their weight, where there are no
    more than `samples`; else sizes are drawn by their total π, members uniformly, and each coalition is followed by
    its complement, all with weight 1. Of equally good values the smallest are taken. Exact for an additive score.
    Positive superpixels speak for the target, and the m values, not the painted pixels, sum to f_c(x) - f_c(hidden).
    Parameters are those of `AdditiveModel`.

    Departures: the constraint is exact, where captum approximates it by a large weight.
    """

    traits = Traits(
        Needs.SCORES,
        "samples + 2",
        True,
        "input",
        "weighted R² of the additive model",
        "Lundberg & Lee 2017, theorem 2",
    )

    def draw(self, count: int, random: torch.Generator) -> Coalitions:
        """See `AdditiveModel.draw`."""
        if count < 2:
            return Coalitions(torch.ones(1, count, dtype=torch.bool), torch.ones(1, dtype=torch.float64))
        if count < 30 and 2**count - 2 <= self.samples:
            codes = torch.arange(1, 2**count - 1)
            z = (codes[:, None] >> torch.arange(count)) & 1 == 1
            return Coalitions(z, _kernel(count)[z.sum(dim=1) - 1])
        sizes = torch.arange(1, count, dtype=torch.float64)
        mass = 1 / (sizes * (count - sizes))
        drawn = torch.multinomial(mass, math.ceil(self.samples / 2), replacement=True, generator=random) + 1
        order = torch.rand(len(drawn), count, generator=random).argsort(dim=1).argsort(dim=1)
        half = order < drawn[:, None]
        z = torch.stack([half, ~half], dim=1).flatten(0, 1)[: self.samples]
        return Coalitions(z, torch.ones(len(z), dtype=torch.float64))

    def fit(self, coalitions: Coalitions, observed: Observed) -> tuple[Tensor, Tensor]:
        """See `AdditiveModel.fit`: equal shares of the total, and a least squares part that sums to 0."""
        z, share = coalitions.z.double(), (observed.full - observed.empty) / coalitions.z.shape[1]
        root = coalitions.weights.sqrt()[:, None]
        rest = observed.scores - observed.empty - z.sum(dim=1, keepdim=True) * share
        return share + least_squares(root * (z - z.mean(dim=1, keepdim=True)), root * rest), observed.empty


def _kernel(count: int) -> Tensor:
    """π by size 1..m-1: (m - 1,) float64."""
    return torch.tensor(
        [(count - 1) / (math.comb(count, s) * s * (count - s)) for s in range(1, count)], dtype=torch.float64
    )


def least_squares(A: Tensor, B: Tensor) -> Tensor:  # noqa: N803
    """The X of least norm that minimises ‖A X - B‖; A may lack rank."""
    solution: Tensor = torch.linalg.lstsq(A, B, driver="gelsd").solution
    return solution
