"""The specification of a study: its short forms, what it hands to its jobs, and what it refuses."""

from typing import Any

import pytest
from pydantic import ValidationError

from schemas.study import StudySpec


def spec(**fields: Any) -> StudySpec:
    return StudySpec(**{"input": "/in", "output": "/out", "model": "timm:resnet18", **fields})


def test_one_model_needs_no_name() -> None:
    assert list(spec().models) == ["resnet18"]
    assert list(spec(model="onnx:folder/a net.onnx").models) == ["a-net.onnx"]


def test_fields_at_the_top_hold_for_models_that_do_not_name_their_own() -> None:
    given = {"small": {"model": "timm:resnet18", "size": 96}, "large": {"model": "timm:resnet50"}}
    found = StudySpec(input="/in", output="/out", size=224, weights="random", models=given)
    jobs = {name: found.job(name, found.methods[0], f"/out/{name}") for name in found.models}
    assert [(job.model, job.size, job.weights) for job in jobs.values()] == [
        ("timm:resnet18", (96, 96), "random"), ("timm:resnet50", (224, 224), "random"),
    ]  # fmt: skip
    assert jobs["small"].output == "/out/small"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("ig", [("ig", "ig", {})]),
        (["gradcam", "ig"], [("gradcam", "gradcam", {}), ("ig", "ig", {})]),
        ({"gradcam": None, "ig": {"steps": 8}}, [("gradcam", "gradcam", {}), ("ig", "ig", {"steps": 8})]),
        ({"ig-8": {"method": "ig", "steps": 8}}, [("ig-8", "ig", {"steps": 8})]),
    ],
)
def test_methods_may_be_written_in_several_ways(given: Any, expected: Any) -> None:
    assert [(one.name, one.method, one.parameters) for one in spec(methods=given).methods] == expected


def test_a_saved_specification_is_read_again() -> None:
    found = spec(methods={"ig-8": {"method": "ig", "steps": 8}}, measure={"boxes": "boxes"})
    assert found.attributes == ("boxes",)
    again = StudySpec(
        **{
            name: value
            for name, value in found.public().items()
            if name not in ("method", "method_args", "runtime", "embedding")
        }
    )
    assert again == found


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"method": "ig"}, "name the methods under `methods`"),
        ({"runtime": "onnx"}, "maps are measured by torch"),
        ({"methods": []}, "at least 1 item"),
        ({"methods": ["ig", "ig"]}, "each needs a name of its own"),
        ({"methods": {"random": {"method": "ig"}}}, "each needs a name of its own"),
        ({"models": {"a": {"method": "ig"}}}, "models.a: no field method"),
        ({"models": {"a b": {}}}, "pattern"),
        ({"models": {"a": {"size": "x"}}}, "size"),
        ({"measure": {"images": 0}}, "compares nothing"),
        ({"measure": {"metrics": {}}}, "compares nothing"),
    ],
)
def test_what_is_wrong_is_told(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        spec(**fields)


def test_how_it_is_computed_does_not_decide_what() -> None:
    assert spec().digest() == spec(runner="local", workers=3, output="/other").digest()
    others = ({"seed": 1}, {"methods": "ig"}, {"models": {"a": {}}}, {"measure": {"images": 3}}, {"input": "/b"})
    assert len({spec(**one).digest() for one in others} | {spec().digest()}) == 6
