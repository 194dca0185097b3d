"""The reasons for which an image is rejected instead of explained."""

REJECT_CODES = {
    "missing_object": "the address names nothing",
    "forbidden": "the storage refuses the credentials for this address",
    "unreadable_shard": "a tar or Parquet file that cannot be read (one row for the rest of the shard)",
    "truncated_shard": "a tar that ends early (one row for what is missing)",
    "no_image": "a sample without an image",
    "empty": "zero bytes",
    "not_an_image": "bytes of no known image format",
    "truncated": "an image that ends early",
    "corrupt": "an image whose data contradict themselves",
    "too_large": "more pixels than max_pixels, or more bytes than an image may have",
    "missing_label": "target is `label` and the image has none",
    "label_out_of_range": "a label that is no class of the model",
    "bad_boxes": "boxes that are not JSON of [[x0, y0, x1, y1], ...]; in an audit only",
    "bad_mask": "a mask that is not COCO's uncompressed run lengths of the image's size; in an audit only",
    "changed_object": "other bytes than those that were explained; in an audit's grids only",
    "crashed": "an image that ends the worker process whenever it is tried, alone too",
    "non_finite": "the network or the method gave a value that is not a finite number",
}
