"""Rows between decoding and the explanation graph: one image each, or the reason why there is none."""

from collections.abc import Sequence

import pyarrow as pa

from schemas.explanations import IDENTITY, PIXELS, REASON, attribute_fields


def decoded_schema(shape: tuple[int, int, int], attributes: Sequence[str] = ()) -> pa.Schema:
    """Schema of a decoded batch.

    Every row has the same size, so that the object store's blocks hold a known number of rows.

    Args:
        shape: (H, W, C) of the model's uint8 input.
        attributes: names of the columns that are carried along.

    Returns:
        Identity, size as displayed, label as text, pixels, and the reason of a reject (null code: an image).
    """
    height, width, channels = shape
    return pa.schema(
        [
            *IDENTITY,
            *PIXELS,
            pa.field("label", pa.string()),
            pa.field("pixels", pa.binary(height * width * channels), nullable=False),
            *REASON,
            *attribute_fields(attributes),
        ]
    )
