"""A few mutated inputs of each kind; `make fuzz` tries thousands, in processes with limits."""

import pytest
from fuzz.cases import KINDS, main

CASES = {"images": 400, "Parquet": 120, "manifest": 60, "tar": 120, "ONNX": 40}


@pytest.mark.parametrize("name", KINDS)
def test_mutated_inputs_are_taken_or_rejected_with_a_reason(name: str) -> None:
    subject = KINDS[name].make(1)
    reasons = {subject(number) for number in range(CASES[name])}
    assert "" in reasons, "the mutations are too coarse: nothing is taken"
    assert len(reasons) > 1, "the mutations are too fine: nothing is rejected"


@pytest.mark.parametrize("name", KINDS)
def test_a_case_follows_from_its_number(name: str) -> None:
    first, again = KINDS[name].make(1), KINDS[name].make(1)
    assert [first(number) for number in range(20, 26)] == [again(number) for number in range(20, 26)]


def test_the_command_tells_what_became_of_the_cases(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--cases", "12", "--only", "tar", "--cells", "1"]) == 0
    [row] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│ tar")]
    assert row.split("│")[2].strip() == "12"
    assert row.split("│")[-2].strip() == "0"
