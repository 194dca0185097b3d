"""Cells: whatever a case does to its process, it is told, and the other cases go on."""

import os
import signal
import time

from fuzz.cells import Subject, judged


def subject() -> Subject:
    """Each number does something else."""
    return answer


def answer(number: int) -> str:
    if number == 1:
        raise ValueError("no sense")
    if number == 2:
        os.kill(os.getpid(), signal.SIGSEGV)
    if number == 3:
        time.sleep(60)
    if number == 4:
        return str(len(bytearray(2**30)))
    return "rejected" if number == 5 else ""


def test_every_end_of_a_case_is_told() -> None:
    found = {v.number: v for v in judged(subject, range(8), cells=2, more_bytes=2**28, timeout_s=1.5)}
    assert [found[n].problem for n in (0, 5, 6, 7)] == [""] * 4
    assert [found[n].reason for n in (0, 5, 6, 7)] == ["", "rejected", "", ""]
    assert found[1].problem == "ValueError: no sense"
    assert found[2].problem == "crashed: exit code -11"
    assert found[3].problem == "hangs: more than 1.5 s"
    assert found[4].problem.startswith("MemoryError")
