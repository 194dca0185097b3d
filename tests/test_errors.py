"""What messages take over from the errors of other libraries."""

from pipeline.errors import first_line


def test_the_first_line_that_says_something() -> None:
    assert first_line(ValueError("\n no such axis: 4\nTraceback ...")) == "no such axis: 4"
    assert first_line(AssertionError()) == "no message"
