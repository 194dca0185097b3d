"""Arrow schemas of what a job writes. Version 1.

`EXPLANATIONS` rows hold one explanation each (k rows an image for target `top:k`); `REJECTS` rows hold one image each
that could not be explained, with the reason. A *fragment*, the unit that a worker commits, holds both kinds, told
apart by `code`: null means explained.
"""

from collections.abc import Sequence

import pyarrow as pa

SCHEMA_VERSION = 1
TOP = 5
CONTENT = "content_digest"
"""Column that tells images by their bytes; runs of raylens before it lack the column."""

IDENTITY: list[pa.Field] = [
    pa.field("sample_id", pa.string(), nullable=False),
    pa.field("uri", pa.string(), nullable=False),
    pa.field("shard", pa.string(), nullable=False),
    pa.field("row", pa.int64(), nullable=False, metadata={"unit": "position in the shard, from 0"}),
    pa.field(CONTENT, pa.string(), metadata={"unit": "BLAKE2b of the encoded bytes, 128 bits in hexadecimal digits"}),
]
PIXELS: list[pa.Field] = [
    pa.field("width", pa.int32(), metadata={"unit": "px, as displayed: after EXIF rotation"}),
    pa.field("height", pa.int32(), metadata={"unit": "px, as displayed: after EXIF rotation"}),
]
PREDICTION: list[pa.Field] = [
    pa.field("label", pa.int32()),
    pa.field("prediction", pa.int32()),
    pa.field("prediction_name", pa.string()),
    pa.field("score", pa.float32(), metadata={"unit": "softmax probability of `prediction`"}),
    pa.field("top5", pa.list_(pa.int32())),
    pa.field("top5_scores", pa.list_(pa.float32())),
    pa.field("margin", pa.float32(), metadata={"unit": "probability of the first minus the second class"}),
    pa.field("entropy", pa.float32(), metadata={"unit": "nat"}),
]
EXPLANATION: list[pa.Field] = [
    pa.field("rank", pa.int32(), metadata={"unit": "0 for the only or first target, up to k-1 for target top:k"}),
    pa.field("target", pa.int32(), metadata={"unit": "class the map explains; null for a class-agnostic method"}),
    pa.field("target_score", pa.float32(), metadata={"unit": "softmax probability of `target`"}),
    pa.field("method", pa.string()),
    pa.field("layer", pa.string()),
]
STATISTICS: list[pa.Field] = [
    pa.field(
        "heatmap_scale",
        pa.float32(),
        metadata={"unit": "power of two: map = heatmap * heatmap_scale; 1 unless out of range"},
    ),
    pa.field("heatmap_max", pa.float32()),
    pa.field("heatmap_min", pa.float32()),
    pa.field(
        "mass_centre", pa.float32(), metadata={"unit": "share of positive mass in the central quarter of the area"}
    ),
    pa.field("gini", pa.float32(), metadata={"unit": "Gini index of the positive part, 0 flat to 1 one cell"}),
    pa.field("centroid_x", pa.float32(), metadata={"unit": "share of the width"}),
    pa.field("centroid_y", pa.float32(), metadata={"unit": "share of the height"}),
    pa.field(
        "box",
        pa.list_(pa.float32()),
        metadata={"unit": "x0, y0, x1, y1 of the top half of the mass, share of the side"},
    ),
    pa.field(
        "self_check", pa.float32(), metadata={"unit": "the method's own check, see `raylens methods`; null without one"}
    ),
]
REASON: list[pa.Field] = [
    pa.field("stage", pa.string()),
    pa.field("code", pa.string()),
    pa.field("message", pa.string()),
]

REJECTS = pa.schema([*IDENTITY, *[field.with_nullable(False) for field in REASON]])


def heatmap_field(shape: tuple[int, int], dtype: str) -> pa.Field:
    """The heatmap column: raw, signed, at the method's own resolution.

    Args:
        shape: rows and columns of one map.
        dtype: `float16` or `float32`.

    Returns:
        A field of Arrow's canonical fixed-shape tensor type.
    """
    value = {"float16": pa.float16(), "float32": pa.float32()}[dtype]
    return pa.field("heatmap", pa.fixed_shape_tensor(value, shape))


def attribute_fields(names: Sequence[str]) -> list[pa.Field]:
    """Columns of the input that are carried along, as text.

    Args:
        names: as in the input.

    Returns:
        A nullable field a name.
    """
    return [pa.field(name, pa.string(), metadata={"unit": "as in the input"}) for name in names]


def explanations_schema(
    shape: tuple[int, int], dtype: str, embedding: int | None = None, attributes: Sequence[str] = ()
) -> pa.Schema:
    """Schema of `explanations/*.parquet`.

    Args:
        shape: rows and columns of one heatmap.
        dtype: `float16` or `float32`, of the heatmap.
        embedding: width of the embedding column; None leaves it out.
        attributes: names of the columns that are carried along.

    Returns:
        The schema without file metadata.
    """
    extra = [] if embedding is None else [pa.field("embedding", pa.list_(pa.float32(), embedding))]
    heatmap = heatmap_field(shape, dtype)
    carried = attribute_fields(attributes)
    return pa.schema([*IDENTITY, *PIXELS, *PREDICTION, *EXPLANATION, heatmap, *STATISTICS, *extra, *carried])


def fragment_schema(
    shape: tuple[int, int], dtype: str, embedding: int | None = None, attributes: Sequence[str] = ()
) -> pa.Schema:
    """Schema of a fragment: an explanation or a reject a row, every value but the identity nullable.

    Args:
        shape: rows and columns of one heatmap.
        dtype: `float16` or `float32`, of the heatmap.
        embedding: width of the embedding column; None leaves it out.
        attributes: names of the columns that are carried along.

    Returns:
        The explanations schema followed by stage, code and message.
    """
    return pa.schema([*explanations_schema(shape, dtype, embedding, attributes), *REASON])
