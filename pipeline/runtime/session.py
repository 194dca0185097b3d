"""ONNX Runtime sessions: on the CPU with the threads of their worker, on CUDA without copies of the images."""

from pathlib import Path
from typing import Any

import onnxruntime as ort
import torch
from torch import Tensor

from pipeline.attribution import Attribution
from pipeline.errors import ModelError, first_line
from pipeline.runtime.torch_graph import Answer
from schemas.graph import Device

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def open_session(model: bytes | str, *, device: Device, threads: int) -> ort.InferenceSession:
    """Opens a session.

    Args:
        model: content of an ONNX file, or its path.
        device: that must execute it; ONNX Runtime alone would fall back to the CPU without an error.
        threads: of one operator on the CPU.

    Returns:
        The session.

    Raises:
        ModelError: the file cannot be loaded, or the device cannot be used.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # failures come as exceptions
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # other actors need the core
    provider = PROVIDERS[device]
    if device == "cuda":
        ort.preload_dlls()  # those that torch brought
    try:
        session = ort.InferenceSession(model, options, providers=[provider])
    except Exception as error:  # the runtime's own types share no base
        raise ModelError(f"ONNX Runtime cannot load the graph: {first_line(error)[:300]}") from error
    if provider not in session.get_providers():
        raise ModelError(
            f"ONNX Runtime cannot use {device}: {provider} did not load; it needs the CUDA and cuDNN libraries of its "
            "own version, see `onnxruntime.print_debug_info()`; or use --runtime torch"
        )
    return session


class OnnxGraph:
    """A compiled explanation graph; called as `TorchGraph` is.

    Args:
        path: of a file made by `compile_graph` with uint8 pixels.
        device: `cpu` or `cuda`.
    """

    def __init__(self, path: Path, *, device: Device) -> None:
        self._session = open_session(str(path), device=device, threads=torch.get_num_threads())
        self._inputs = [value.name for value in self._session.get_inputs()]
        self._outputs = [value.name for value in self._session.get_outputs()]
        self._device = device

    def __call__(self, pixels: Tensor, known: Tensor, seeds: Tensor | None = None) -> Answer:
        """See `TorchGraph.__call__`; the answer is on the CPU."""
        inputs = {"image": pixels, "target": known}
        values = self._run({name: inputs[name] for name in self._inputs})
        targets = values["target"] if "target" in values else known[:, None].cpu()
        result = Attribution(values["scores"], targets, values["heatmap"], values.get("check"))
        return Answer(result, values.get("embedding"))

    def _run(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        if self._device == "cpu":
            arrays: list[Any] = self._session.run(None, {name: value.numpy() for name, value in inputs.items()})
        else:
            arrays = self._bound(inputs)
        return {name: torch.from_numpy(array) for name, array in zip(self._outputs, arrays, strict=True)}

    def _bound(self, inputs: dict[str, Tensor]) -> list[Any]:
        """Reads the inputs where torch has put them on the GPU; only the small outputs come back."""
        binding = self._session.io_binding()
        for name, value in inputs.items():
            held = value.contiguous()
            kind = str(held.dtype).removeprefix("torch.")
            binding.bind_input(name, "cuda", held.device.index or 0, kind, tuple(held.shape), held.data_ptr())
        for name in self._outputs:
            binding.bind_output(name)
        torch.cuda.current_stream().synchronize()  # the runtime works on a stream of its own
        self._session.run_with_iobinding(binding)
        arrays: list[Any] = binding.copy_outputs_to_cpu()
        return arrays
