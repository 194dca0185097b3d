"""Random slices: the chance row of every table."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pipeline.bias.slicing.slicer import Evidence, Floats, Slicer, Slices


@dataclass(frozen=True, eq=False)
class Draws(Slices):
    """Parts that rows fall into by a draw of their own.

    Attributes:
        seed: of the draws.
    """

    seed: int

    def memberships(self, evidence: Evidence) -> Floats:
        """1 for the part that was drawn; see `Slices.memberships`."""
        parts = evidence.digests(self.seed) % np.uint64(len(self))
        return np.asarray(parts[:, None] == np.arange(len(self), dtype=np.uint64), dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class Random(Slicer):
    """Random parts of about equal size; the draw of a row comes from the seed and its content, on any data.

    Args:
        slices: number of parts.
        seed: of the draws.
    """

    source: ClassVar[str] = "control"

    def find(self, evidence: Evidence) -> Draws:
        """See `Slicer.find`."""
        return Draws(np.zeros(self.slices), f"random parts of {len(evidence):,} images", self.seed)
