"""The same compiled graph and the same decoder behind LitServe: `python peer_litserve.py PORT MODEL BATCH`.

As its documents advise: one worker a core, the ZeroMQ queue, and batches that wait no longer than they must.
"""

import base64
import json
import os
import sys
from typing import Any

import litserve as ls
import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.graph import Columns, ExplanationGraph
from pipeline.stream.decode import Decoder
from schemas.online import ServedModel

BATCH_TIMEOUT_S = 0.005
MAX_PIXELS = 50_000_000


class Explain(ls.LitAPI):
    """Prediction and heatmap of one image a request."""

    def __init__(self, model: ServedModel, batch: int) -> None:
        super().__init__(max_batch_size=batch, batch_timeout=BATCH_TIMEOUT_S if batch > 1 else 0.0)
        self.model = model

    def setup(self, device: str) -> None:
        torch.set_num_threads(1)
        self.graph = ExplanationGraph(self.model.graph_spec(next(iter(self.model.methods)), "cpu"))
        self.decoder = Decoder(self.graph.model.preprocessing, max_pixels=MAX_PIXELS)
        self.graph.explain(np.zeros((1, *self.graph.model.preprocessing.shape), np.uint8), ["warm-up"])

    def decode_request(self, request: dict[str, str]) -> NDArray[np.uint8]:
        return self.decoder.decode(base64.b64decode(request["b64"], validate=True)).pixels

    def batch(self, inputs: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        return np.stack(inputs)

    def predict(self, x: NDArray[np.uint8]) -> Columns:
        images = x if x.ndim == 4 else x[None]
        return self.graph.explain(images, [""] * len(images))

    def unbatch(self, output: Columns) -> list[tuple[int, float, NDArray[np.float32]]]:
        rows = zip(output["prediction"], output["top_scores"][:, 0], output["heatmaps"][:, 0], strict=True)
        return [(int(prediction), float(score), heatmap) for prediction, score, heatmap in rows]

    def encode_response(self, output: Any) -> dict[str, Any]:
        prediction, score, heatmap = output if isinstance(output, tuple) else self.unbatch(output)[0]
        return {"prediction": prediction, "score": score, "heatmap": heatmap.tolist()}


if __name__ == "__main__":
    port, model, batch = sys.argv[1:]
    server = ls.LitServer(
        Explain(ServedModel(**json.loads(model)), int(batch)),
        accelerator="cpu",
        workers_per_device=os.cpu_count() or 1,
        fast_queue=True,
    )
    server.run(host="127.0.0.1", port=int(port), log_level="error", generate_client_file=False)
