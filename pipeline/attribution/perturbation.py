"""Methods that watch the score while parts of the image are hidden: RISE and occlusion.

A hidden pixel takes the baseline's value. The mask blends in normalised space: x' = b + (x - b) ⊙ M, with M = 1 where
the image is kept. The default baseline is 0 there, which is the data set's mean colour.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.attribution.base import Attribution, Choose, Method, Needs, Traits, generator
from pipeline.attribution.folding import Scorer
from pipeline.errors import MethodError
from pipeline.model import LoadedModel, Preprocessing

Score = Literal["probability", "logit"]
CHUNK_PX = 224 * 224
"""Pixels of the images that chunks are counted in."""


def chunks(count: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most `size` that cover `range(count)`."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def passes_at_once(chunk: int | None, x: Tensor) -> int:
    """How many images of a size run at a time.

    A chunk counts images of 224 x 224 px; larger ones take the room of several, so that memory does not grow with them.

    Args:
        chunk: None for 16 on the CPU, whose caches hold no more, and 64 elsewhere.
        x: (..., H, W), images of that size on the device where they run.

    Returns:
        The chunk, fewer for images larger than 224 x 224 px; at least 1.
    """
    usual = chunk or (16 if x.device.type == "cpu" else 64)
    return max(1, usual * CHUNK_PX // max(CHUNK_PX, x.shape[-2] * x.shape[-1]))


def grey(level: float, preprocessing: Preprocessing, device: torch.device | str = "cpu") -> Tensor:
    """A grey level in 0..1 in normalised space: (1, C, 1, 1) float32."""
    mean, std = (torch.tensor(v, device=device).view(1, -1, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    return (level - mean) / std


class Perturbation(Method):
    """A method that reads scores of perturbed images only; the life of chunks, baselines and scores.

    Args:
        model: the model to explain.
        seed: of the job; decides masks that all images share.
        chunk: forwards of 224 px images at a time, fewer of larger ones; None for 16 on the CPU, whose caches hold no
            more, and 64 elsewhere. Memory follows it, results do not beyond rounding.
        score: `probability` (softmax) or `logit` of the target.
        baseline: grey level in 0..1 that hides a pixel; None for 0 in normalised space, the mean colour.

    Raises:
        MethodError: a parameter is out of range.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        seed: int = 0,
        chunk: int | None = None,
        score: Score = "logit",
        baseline: float | None = None,
    ) -> None:
        super().__init__(model, seed=seed)
        require(chunk is None or chunk >= 1, f"chunk must be 1 or more, found {chunk}")
        require(score in get_args(Score), f"score must be one of {get_args(Score)}, found {score!r}")
        self.chunk = chunk
        self.score = score
        self.baseline = baseline

    def __call__(self, x: Tensor, choose: Choose, seeds: Tensor | None = None) -> Attribution:
        """See `Method.__call__`; k targets share the forwards."""
        with torch.no_grad():
            logits = self.model.module(x).float()
            targets = choose(logits)
            sample_seeds = torch.zeros(len(x), dtype=torch.int64) if seeds is None else seeds
            maps, check = self.explain(x, logits, targets, sample_seeds)
        return Attribution(logits, targets, maps.float(), None if check is None else check.float())

    @abstractmethod
    def explain(self, x: Tensor, logits: Tensor, targets: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor | None]:
        """Maps of a batch.

        Args:
            x: (N, C, H, W) model input.
            logits: (N, K) float32 of x.
            targets: (N, k) int64.
            seeds: (N,) int64, one a sample.

        Returns:
            (N, k, h, w) maps and (N, k) checks or None, in any floating type.
        """

    @cached_property
    def scorer(self) -> Scorer:
        """What runs the perturbed images; made at the first use."""
        return Scorer(self.model)

    def forwards(self, x: Tensor) -> int:
        """How many run at a time of images like x."""
        return passes_at_once(self.chunk, x)

    def parts(self, count: int, x: Tensor) -> Iterator[slice]:
        """Slices of `count` masks, as many as run at a time."""
        return chunks(count, self.forwards(x))

    def values(self, logits: Tensor) -> Tensor:
        """Logits (R, K) to the scores that are explained, (R, K) float64."""
        double = logits.double()
        return double.softmax(dim=1) if self.score == "probability" else double

    def fill(self, x: Tensor) -> Tensor:
        """What hides a pixel, broadcastable to x, in x's dtype."""
        if self.baseline is None:
            return x.new_zeros(())
        return grey(self.baseline, self.model.preprocessing, x.device).to(x.dtype)

    def target_scores(self, rows: Tensor, targets: Tensor) -> Tensor:
        """Scores of the targets, in one forward pass.

        Args:
            rows: (R, C, H, W) perturbed inputs.
            targets: (R, k) int64.

        Returns:
            (R, k) float64.
        """
        return self.values(self.scorer(rows).float()).gather(1, targets)

    def masked_scores(self, x: Tensor, masks: Tensor, targets: Tensor, *, fill: Tensor | None = None) -> Tensor:
        """Scores of every image under every mask, at most about `chunk` forwards at a time.

        Args:
            x: (N, C, H, W).
            masks: (B, H, W) in [0, 1], 1 keeps; B is at most `chunk`.
            targets: (N, k) int64.
            fill: what hides a pixel, broadcastable to x; the baseline where None.

        Returns:
            (N, B, k) float64.
        """
        hidden = (self.fill(x) if fill is None else fill).expand_as(x)
        groups = chunks(len(x), max(1, self.forwards(x) // len(masks)))
        found = []
        for group in groups:
            rows = blend(x[group], hidden[group], masks)
            scores = self.target_scores(rows, targets[group].repeat_interleave(len(masks), dim=0))
            found.append(scores.view(-1, len(masks), targets.shape[1]))
        return torch.cat(found)


def require(holds: bool, message: str) -> None:
    """Refuses a method's parameter.

    Args:
        holds: whether the parameter is in its range.
        message: expected and found.

    Raises:
        MethodError: it is not.
    """
    if not holds:
        raise MethodError(message)


def blend(x: Tensor, hidden: Tensor, masks: Tensor) -> Tensor:
    """b + (x - b) ⊙ M for every image and mask.

    Args:
        x: (N, C, H, W).
        hidden: (N, C, H, W), b.
        masks: (B, H, W).

    Returns:
        (N B, C, H, W) in x's dtype, the masks of one image after each other, in channels-last memory order: with it
        convolutions on the CPU run 1.4 to 1.7 times as fast.
    """
    kept = masks.to(x.dtype)[None, ..., None]
    image, other = (t.permute(0, 2, 3, 1).contiguous()[:, None] for t in (x, hidden))  # (N, 1, H, W, C)
    return torch.lerp(other, image, kept).flatten(0, 1).permute(0, 3, 1, 2)


class RISE(Perturbation):
    """RISE: S = 1 / (N p) Σ_i f_c(x ⊙ M_i) M_i, with M_i smooth random masks.

    A mask is an s x s Bernoulli(p) grid, enlarged bilinearly to (s + 1) cells a side and cropped at random. The masks
    are drawn once per (size, N, s, p) from the job's seed and shared by all images. Positive everywhere; only
    differences within a map mean something.

    Departures: the enlargement clamps at the border where the official code mirrors (equal but for the outermost half
    cell); the check is ours. Masks of a chunk exist only while it runs.

    Args:
        model: the model to explain.
        seed: of the job.
        masks: N.
        cells: s.
        keep: p, the chance that a cell is kept.
        chunk: forwards at a time; see `Perturbation`.
        score: `probability` as in the paper, or `logit`.
        baseline: see `Perturbation`; None multiplies the normalised input as the official code does.
    """

    traits = Traits(
        Needs.SCORES,
        "masks + 1",
        True,
        "input",
        "correlation between the maps of the odd and the even masks; 1 is converged",
        "Petsiuk et al. 2018, eq. 6",
    )

    def __init__(
        self,
        model: LoadedModel,
        *,
        seed: int = 0,
        masks: int = 4000,
        cells: int = 7,
        keep: float = 0.5,
        chunk: int | None = None,
        score: Score = "probability",
        baseline: float | None = None,
    ) -> None:
        super().__init__(model, seed=seed, chunk=chunk, score=score, baseline=baseline)
        require(masks >= 2, f"masks must be 2 or more, found {masks}")
        require(cells >= 1, f"cells must be 1 or more, found {cells}")
        require(0 < keep < 1, f"keep must be between 0 and 1, found {keep}")
        self.masks = masks
        self.cells = cells
        self.keep = keep

    def explain(self, x: Tensor, logits: Tensor, targets: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor | None]:
        """See `Perturbation.explain`."""
        size = (x.shape[2], x.shape[3])
        draw = rise_masks(size, count=self.masks, cells=self.cells, keep=self.keep, seed=self.seed, device=x.device)
        n, k = targets.shape
        halves = x.new_zeros((2, n, k, *size), dtype=torch.float64)  # even and odd masks
        for part in self.parts(self.masks, x):
            masks = draw(part)  # (B, H, W)
            scores = self.masked_scores(x, masks, targets)
            for half in range(2):
                first = (part.start + half) % 2
                halves[half] += weighted_sum(scores[:, first::2], masks[first::2])
        maps = halves.sum(dim=0) / (self.masks * self.keep)
        return maps, correlation(halves[0].flatten(2), halves[1].flatten(2))


def weighted_sum(scores: Tensor, masks: Tensor) -> Tensor:
    """Σ_b scores_b masks_b: (N, B, k) float64 and (B, H, W) float32 to (N, k, H, W) float64, summed in float32."""
    return torch.einsum("nbk,bhw->nkhw", scores.to(masks.dtype), masks).double()


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation over the last dimension; 1 where both are constant, 0 where one is."""
    a, b = a - a.mean(dim=-1, keepdim=True), b - b.mean(dim=-1, keepdim=True)
    power = a.norm(dim=-1) * b.norm(dim=-1)
    both = (a.norm(dim=-1) == 0) & (b.norm(dim=-1) == 0)
    return torch.where(both, 1.0, (a * b).sum(dim=-1) / power.clamp_min(torch.finfo(a.dtype).tiny))


def rise_masks(
    size: tuple[int, int], *, count: int, cells: int, keep: float, seed: int, device: torch.device
) -> Callable[[slice], Tensor]:
    """Draws the coarse grids and the offsets of all masks; the returned function enlarges a slice of them.

    Args:
        size: H, W of the masks, px.
        count: N.
        cells: s.
        keep: p.
        seed: of the job.
        device: of the masks.

    Returns:
        A function of a slice of range(N) to (B, H, W) float32 masks in [0, 1].
    """
    random = generator(seed, 0)
    grids = (torch.rand(count, cells, cells, generator=random) < keep).float().to(device)
    steps = [math.ceil(side / cells) for side in size]  # px a cell
    offsets = [torch.randint(step, (count,), generator=random).to(device) for step in steps]
    tables = [enlargement(cells, (cells + 1) * step).to(device) for step in steps]
    pixels = [torch.arange(side, device=device) for side in size]

    def enlarge(part: slice) -> Tensor:
        rows, columns = (t[o[part, None] + p] for t, o, p in zip(tables, offsets, pixels, strict=True))
        return rows @ grids[part] @ columns.transpose(1, 2)  # (B, H, s) (B, s, s) (B, s, W)

    return enlarge


def enlargement(cells: int, pixels: int) -> Tensor:
    """Bilinear interpolation from `cells` to `pixels` samples as a matrix (pixels, cells), half-pixel centres."""
    unit = torch.eye(cells)[None]  # (1, cells as channels, cells)
    return F.interpolate(unit, size=pixels, mode="linear", align_corners=False)[0].T


class Occlusion(Perturbation):
    """Occlusion: the drop f_c(x) - f_c(x with a window hidden), averaged over the windows that cover a pixel.

    Windows lie at multiples of the stride from the top left corner; the last ones are cut off by the border.
    Positive pixels speak for the target.

    Departures: Zeiler & Fergus plot the probability at the window's centre; the mean over covering windows, on the
    logit, is what captum computes.

    Args:
        model: the model to explain.
        seed: of the job; not used.
        window: side of the square window, px; None for a seventh of the shorter side.
        stride: step between windows, px, at most the window's side; None for half the window.
        chunk: forwards at a time; see `Perturbation`.
        score: `logit` or `probability`.
        baseline: see `Perturbation`.
    """

    traits = Traits(Needs.SCORES, "windows + 1", True, "input", "", "Zeiler & Fergus 2014, section 4.2")

    def __init__(
        self,
        model: LoadedModel,
        *,
        seed: int = 0,
        window: int | None = None,
        stride: int | None = None,
        chunk: int | None = None,
        score: Score = "logit",
        baseline: float | None = None,
    ) -> None:
        super().__init__(model, seed=seed, chunk=chunk, score=score, baseline=baseline)
        shorter = min(model.preprocessing.size)
        self.window = max(1, shorter // 7) if window is None else window
        self.stride = max(1, self.window // 2) if stride is None else stride
        require(1 <= self.window <= shorter, f"window must be in 1..{shorter} px, found {self.window}")
        require(1 <= self.stride <= self.window, f"stride must be in 1..{self.window} px, found {self.stride}")

    def explain(self, x: Tensor, logits: Tensor, targets: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor | None]:
        """See `Perturbation.explain`."""
        full = self.values(logits).gather(1, targets)  # (N, k)
        windows = self.windows((x.shape[2], x.shape[3])).to(x.device)
        maps = x.new_zeros((*targets.shape, *x.shape[2:]), dtype=torch.float64)
        cover = x.new_zeros(x.shape[2:], dtype=torch.float64)
        for part in self.parts(len(windows), x):
            hidden = self.inside(windows[part], (x.shape[2], x.shape[3]))  # (B, H, W)
            drops = full[:, None] - self.masked_scores(x, 1 - hidden, targets)
            maps += weighted_sum(drops, hidden)
            cover += hidden.sum(dim=0)
        return maps / cover, None

    def windows(self, size: tuple[int, int]) -> Tensor:
        """(B, 2) int64: top and left of every window, px, row by row."""
        starts = [torch.arange(math.ceil((side - self.window) / self.stride) + 1) * self.stride for side in size]
        return torch.cartesian_prod(*starts).view(-1, 2)

    def inside(self, corners: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, 2) corners to (B, H, W) float32, 1 in the window."""
        rows, columns = (
            ((p := torch.arange(side, device=corners.device)) >= c[:, None]) & (p < c[:, None] + self.window)
            for side, c in zip(size, corners.unbind(dim=1), strict=True)
        )
        return (rows[:, :, None] & columns[:, None, :]).float()
