"""Methods that multiply attention from block to block: rollout and Chefer's relevance.

A = attention probabilities (N, heads, T, T) of a block, rows are queries. Only the row that the score reads is wanted,
so a row vector is carried from the last block to the first: T² a block in place of T³.
"""

from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

from pipeline.attribution.attention_capture import AttentionCapture, Tokens, tokens_of
from pipeline.attribution.attention_relevance import RelevanceCapture, follow
from pipeline.attribution.base import Attribution, Choose, Method, Needs, Traits, probe, without_gradient
from pipeline.errors import MethodError
from pipeline.model import LoadedModel

Form = Literal["gradient", "lrp"]


class TokenMethod(Method):
    """A method with one value a token of the grid."""

    @classmethod
    def unsuited(cls, model: LoadedModel) -> str | None:
        """See `Method.unsuited`; networks without global attention over one set of tokens are refused."""
        try:
            tokens_of(model)
        except MethodError as error:
            return str(error)
        return None

    @cached_property
    def tokens(self) -> Tokens:
        """The network's tokens; found at the first use."""
        return tokens_of(self.model)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of one map."""
        return self.tokens.layout.grid


class Rollout(TokenMethod):
    """Attention rollout: the class row of Π_b rownorm(mean_h A^b + I); rows of the product sum to 1.

    Not negative, and the same for every class. Where the score reads several tokens (averaged patches), the mean of
    their rows. Heads are averaged, as in the paper; nothing is discarded.
    """

    traits = Traits(Needs.ATTENTION, "1", False, "grid", "", "Abnar & Zuidema 2020, eq. 1 and 2")

    def __call__(self, x: Tensor, choose: Choose, seeds: Tensor | None = None) -> Attribution:
        """See `Method.__call__`; one average over heads is kept a block."""
        with torch.no_grad(), AttentionCapture(keep=lambda a: a.float().mean(dim=1)) as capture:
            logits = self.model.module(x).float()
        targets = choose(logits)
        row = self.tokens.start(x)
        for A in reversed(capture.attention):
            row = mixed(row, A + torch.eye(A.shape[-1], device=A.device))
        maps = self.tokens.to_map(row)[:, None].expand(-1, targets.shape[1], -1, -1)
        return Attribution(logits, targets, maps)


def mixed(row: Tensor, A: Tensor) -> Tensor:  # noqa: N803
    """row · rownorm(A): (N, T) and (N, T, T) to (N, T)."""
    return torch.einsum("nt,nts->ns", row, A / A.sum(dim=-1, keepdim=True))


class Chefer(TokenMethod):
    """Chefer's relevance: the class row of Π_b Ā^b with Ā^b = I + mean_h((∇A ⊙ R)⁺), without row normalisation.

    ∇A is the gradient of the target's logit. R is A itself in the form `gradient` (2021b, which needs no relevance
    rules), or the relevance of A by the rules of `attention_relevance` in the form `lrp` (2021a). Not negative.
    Memory holds the attention of all blocks.

    Departures: batched, relevance is normalised per image where the official code sums over its batch of one. Where
    the score reads several tokens, the mean of their rows. The I of the class row itself is taken off: nothing changes
    for a class token, and averaged patches lose a constant that would drown the map.

    Args:
        model: the model to explain.
        seed: of the job; not used.
        form: `gradient` or `lrp`.

    Raises:
        MethodError: unknown form, or `lrp` has no rule for a function of this network.
    """

    traits = Traits(
        Needs.ATTENTION,
        "1, or 2 in the form lrp, and a backward pass each",
        True,
        "grid",
        "",
        "Chefer et al. 2021b (ICCV), eq. 5 and 6; 2021a (CVPR), eq. 13 and 14",
    )

    @classmethod
    def unsuited(cls, model: LoadedModel) -> str | None:
        """See `TokenMethod.unsuited`; also refuses networks whose score has no gradient at an attention."""
        if reason := super().unsuited(model):
            return reason
        with torch.enable_grad(), AttentionCapture(gradients=True) as capture:
            lost = without_gradient(model.module(probe(model)), capture.attention)
        return f"its score has no gradient at {lost} of its {len(capture.attention)} attentions" if lost else None

    def __init__(self, model: LoadedModel, *, seed: int = 0, form: Form = "gradient") -> None:
        super().__init__(model, seed=seed)
        if form not in get_args(Form):
            raise MethodError(f"form must be one of {get_args(Form)}, found {form!r}")
        self.form = form
        if form == "lrp" and (missing := self._without_rule()):
            raise MethodError(f"form lrp has no rule for {', '.join(missing)} in {model.source}; use form gradient")

    def _without_rule(self) -> list[str]:
        with torch.enable_grad(), RelevanceCapture() as capture:
            self.model.module(probe(self.model).requires_grad_())
        return sorted(capture.without_rule)

    def __call__(self, x: Tensor, choose: Choose, seeds: Tensor | None = None) -> Attribution:
        """See `Method.__call__`; k targets share the forward passes."""
        with torch.enable_grad(), AttentionCapture(gradients=True) as capture:
            logits = self.model.module(x).float()
        targets = choose(logits.detach())
        relevance = self._relevance(x) if self.form == "lrp" else None
        maps = []
        for column in range(targets.shape[1]):
            chosen = torch.zeros_like(logits).scatter(1, targets[:, column : column + 1], 1)
            gradients = torch.autograd.grad(logits, capture.attention, chosen, retain_graph=True)
            R = follow(relevance, chosen) if relevance else [A.detach() for A in capture.attention]
            maps.append(self.tokens.to_map(self._row(gradients, R)))
        return Attribution(logits.detach(), targets, torch.stack(maps, dim=1))

    def _relevance(self, x: Tensor) -> RelevanceCapture:
        capture = RelevanceCapture()
        with torch.enable_grad(), capture:
            capture.logits = self.model.module(x.detach().clone().requires_grad_()).float()
        return capture

    def _row(self, gradients: tuple[Tensor, ...], R: list[Tensor]) -> Tensor:  # noqa: N803
        start = self.tokens.start(gradients[0])
        gain = torch.zeros_like(start)  # the row less the I it began with
        for g, r in zip(reversed(gradients), reversed(R), strict=True):
            gain = gain + torch.einsum("nt,nts->ns", start + gain, positive_mean(g, r))
        return gain


def positive_mean(g: Tensor, r: Tensor) -> Tensor:
    """mean_h((g ⊙ r)⁺): (N, heads, T, T) twice to (N, T, T) float32."""
    return (g.float() * r.float()).clamp_min(0).mean(dim=1)
