"""Which embeddings are computed beside an explanation: of the whole image, of its evidence, and of controls."""

from typing import Annotated, Literal

from pydantic import Field

from schemas.graph import Frozen, ModelSpec

Space = Literal["image", "evidence", "rest", "random"]
"""What is shown to the network: the whole image, what the explanation points at (ViG-Bias), all but this, or smooth
blobs of the evidence's area that know nothing of the image."""

COLUMNS: dict[Space, str] = {
    "image": "embedding",
    "evidence": "embedding_evidence",
    "rest": "embedding_rest",
    "random": "embedding_random",
}
"""Column of each space."""
SHARE = "evidence_share"
"""Column with the share of the image that the evidence keeps; 0 where the map has no positive cell."""

DESCRIPTIONS: dict[Space, str] = {
    "image": "description",
    "evidence": "description_evidence",
    "rest": "description_rest",
}
"""Columns of what images look like without any network, see `pipeline.bias.description`."""


class EmbedSpec(Frozen):
    """What is embedded; equal specifications give equal columns.

    Attributes:
        spaces: each once; none where embeddings come from elsewhere. Descriptions are always computed.
        model: network whose features are taken; None for the explained one.
        kept: largest share of the image that its evidence is.
        seed: of the random space.
        images: that were drawn from the explained ones; None for all.
    """

    spaces: tuple[Space, ...] = ("image",)
    model: ModelSpec | None = None
    kept: Annotated[float, Field(gt=0, lt=1)] = 0.3
    seed: int = 0
    images: int | None = None
