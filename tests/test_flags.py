"""Flags and files become a specification: text, pairs, and messages that name what is wrong."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import SpecError
from pipeline.flags import pairs, parsed
from schemas.job import JobSpec


def test_key_value_pairs() -> None:
    assert pairs("storage", ["anon=true", "endpoint_url=http://x:1?a=b", "n=3", "name=text", "list=[1, 2]", "e="]) == {
        "anon": True, "endpoint_url": "http://x:1?a=b", "n": 3, "name": "text", "list": [1, 2], "e": None,
    }  # fmt: skip
    for wrong in ("anon", "=true", ""):
        with pytest.raises(SpecError, match=r"--model-args .*expected KEY=VALUE"):
            pairs("model_args", [wrong])


@pytest.mark.parametrize(("name", "text"), [("size", "[224"), ("storage", ["key=[a"]), ("storage", ["key=@a"])])
def test_a_value_that_is_no_yaml_is_a_clear_error(name: str, text: Any) -> None:
    with pytest.raises(SpecError, match=f"--{name}: expected a value as in YAML"):
        parsed(JobSpec, {"input": ["/a"], "output": "/b", "model": "m", name: text})


def test_pairs_of_flags_are_added_to_those_of_the_file(tmp_path: Path) -> None:
    config = {"input": "/a", "output": "/b", "model": "m", "model_args": {"depth": 3, "width": 4}}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(config))
    spec = parsed(JobSpec, {"config": tmp_path / "job.yaml", "model_args": ["width=5", "name=x"]})
    assert spec.model_args == {"depth": 3, "width": 5, "name": "x"}


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("size", "224", (224, 224)),
        ("size", "224x160", (224, 160)),
        ("mean", "0.485,0.456,0.406", (0.485, 0.456, 0.406)),
        ("std", "0.3", (0.3,)),
        ("target", "7", "7"),
        ("batch_size", "32", 32),
        ("max_reject_share", "0.5", 0.5),
        ("metrics_port", "9100", 9100),
        ("seed", "-3", -3),
        ("weights", "random", "random"),
        ("layer", "features.3", "features.3"),
        ("image_field", "1", "1"),
        ("input", ["a.tar", "/b"], (f"{Path.cwd()}/a.tar", "/b")),
    ],
)
def test_text_of_flags(name: str, text: Any, value: Any) -> None:
    given = {"input": ["/a"], "output": "/b", "model": "m", name: text}
    assert getattr(parsed(JobSpec, given), name) == value


def test_what_is_missing_is_named() -> None:
    with pytest.raises(SpecError) as caught:
        parsed(JobSpec, {"output": "/b"})
    assert "input: missing; add --input or `input:` in the file" in str(caught.value)
    assert "model: missing; add --model" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("nosuchfield: 3", "nosuchfield: no such field"),
        ("- a\n- b", "holds list, expected fields"),
        ("a: [", "cannot be read"),
        ("method_args: 3", "method_args: "),
    ],
)
def test_a_wrong_file_is_a_clear_error(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "job.yaml").write_text(content)
    with pytest.raises(SpecError, match=message):
        parsed(
            JobSpec,
            {"config": tmp_path / "job.yaml", "input": ["/a"], "output": "/b", "model": "m", "method_args": ["a=1"]},
        )
