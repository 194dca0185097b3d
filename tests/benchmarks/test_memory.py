"""Peak memory of every method against batch size, and against its number of masks or steps. `make bench`.

Each point is measured in a process of its own, forked from one that has loaded the network: the high-water mark of
resident memory over what the process began with, so that neither imports nor weights nor earlier points count. Copies
of the network that a method makes (lrp, srmap, meta) do count.
"""

import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.attribution import METHODS, create
from pipeline.model import LoadedModel, load
from schemas.graph import ModelSpec

SIZE = 128
BATCHES = (1, 4, 16)
NETWORKS: dict[str, dict[str, Any]] = {
    "mobilenetv2_050": {},
    "vit_tiny_patch16_224": {"img_size": SIZE, "depth": 6},
}
COUNTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "scorecam": ({"channels": 32}, {"channels": 128}),
    "ig": ({"steps": 32}, {"steps": 128}),
    "smoothig": ({"steps": 32}, {"steps": 128}),
    "smoothgrad": ({"samples": 32}, {"samples": 128}),
    "vargrad": ({"samples": 32}, {"samples": 128}),
    "rise": ({"masks": 64}, {"masks": 256}),
    "occlusion": ({"window": 32, "stride": 16}, {"window": 32, "stride": 8}),
    "lime": ({"samples": 64}, {"samples": 256}),
    "kernelshap": ({"samples": 64}, {"samples": 256}),
    "sobol": ({"grid": 4, "design": 4}, {"grid": 4, "design": 16}),
    "vps": ({"segments": 9}, {"segments": 18}),
}
"""Parameters for n and about 4 n forwards; n fills every chunk. Other methods have no such number."""
SLACK = 1.15, 8.0
"""A share and MiB by which two runs of the same work may differ."""


@pytest.fixture(params=NETWORKS)
def model(request: pytest.FixtureRequest) -> Iterator[LoadedModel]:
    """The network, loaded with one thread, so that it can be used after a fork."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    spec = ModelSpec(source=f"timm:{request.param}", weights="random", arguments=NETWORKS[request.param], size=SIZE)
    yield load(spec)
    torch.set_num_threads(before)


def status(field: str) -> float:
    """A field of /proc/self/status, MiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def explain_once(model: LoadedModel, name: str, count: int, chosen: dict[str, Any], report: Any) -> None:
    """In a process of its own: reports the growth of resident memory at its peak, MiB."""
    x = torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    start = status("VmRSS")
    method = create(name, model, **chosen)
    method(x, lambda logits: logits.argmax(1, keepdim=True), torch.arange(count))
    report.send(status("VmHWM") - start)


def peak(model: LoadedModel, name: str, count: int, chosen: dict[str, Any]) -> float:
    """Peak memory of one call over a batch, MiB."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=explain_once, args=(model, name, count, chosen, send))
    process.start()
    send.close()
    try:
        return float(receive.recv())
    finally:
        process.join()


def row(model: LoadedModel, name: str) -> tuple[list[float], list[float]]:
    """Peaks by batch size, and at batch 1 by number of masks or steps."""
    few, many = COUNTS.get(name, ({}, {}))
    batches = [peak(model, name, count, few) for count in BATCHES]
    return batches, [batches[0], peak(model, name, 1, many)] if name in COUNTS else []


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_memory_of_every_method(model: LoadedModel) -> None:
    """Goal: nothing grows with the number of masks or steps."""
    print(f"\npeak memory over the loaded network, MiB: {model.source}, {SIZE} px")
    print(f"  {'method':<16}" + "".join(f"{f'batch {count}':>10}" for count in BATCHES) + f"{'n':>10}{'4 n':>10}")
    grown = []
    for name in METHODS:
        if METHODS[name].misfit(model) is not None:
            continue
        batches, counts = row(model, name)
        print(f"  {name:<16}" + "".join(f"{value:>10.0f}" for value in (*batches, *counts)), flush=True)
        if counts and counts[1] > counts[0] * SLACK[0] + SLACK[1]:
            grown.append(name)
    assert not grown, f"memory grows with masks or steps: {grown}"
