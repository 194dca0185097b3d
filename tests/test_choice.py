"""`runtime: auto` takes what is faster, and what works."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import choice
from pipeline.choice import choose
from schemas.graph import GraphSpec, ModelSpec

SMALL = ModelSpec(source="timm:resnet10t", weights="random", size=64)


def specs(**fields: object) -> list[GraphSpec]:
    return [GraphSpec.model_validate({"model": SMALL, "runtime": r, **fields}) for r in ("torch", "onnx")]


@pytest.mark.parametrize(
    ("milliseconds", "expected"), [([20.0, 10.0], "onnx"), ([10.0, 20.0], "torch"), ([10, 9.9], "torch")]
)
def test_the_faster_one_is_taken(
    milliseconds: list[float], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def medians(runs: list[Callable[[], object]], images: int) -> list[float]:
        for run in runs:
            run()
        return milliseconds

    monkeypatch.setattr(choice, "_medians", medians)
    found = choose(*specs(batch_size=2), cache=str(tmp_path))
    assert found.runtime == expected
    assert "ms an image with ONNX Runtime" in found.why


def test_a_method_that_cannot_be_compiled_runs_in_torch(tmp_path: Path) -> None:
    found = choose(*specs(method="rise"), cache=str(tmp_path))
    assert found.runtime == "torch"
    assert "rise takes masks" in found.why


def test_medians_alternate_after_a_warm_up() -> None:
    calls: list[str] = []
    found = choice._medians([lambda: calls.append("a"), lambda: calls.append("b")], 4)
    assert calls == ["a", "b"] * (choice.ROUNDS + 1)
    assert len(found) == 2
    assert min(found) > 0
