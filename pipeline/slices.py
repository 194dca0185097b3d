"""Values of a column by which images are sliced: as text, and not too many of them."""

from collections.abc import Collection, Iterable

from pipeline.errors import InputError

NO_VALUE = "(none)"
"""Of images whose value is missing."""


def texts(values: Iterable[object]) -> list[str]:
    """Every value as text; `NO_VALUE` where it is None."""
    return [NO_VALUE if value is None else str(value) for value in values]


def check_number(name: str, values: Collection[str], most: int) -> None:
    """Refuses a column that cuts the images into too many slices.

    Args:
        name: of the column.
        values: different ones.
        most: that are allowed.

    Raises:
        InputError: there are more.
    """
    if len(values) > most:
        raise InputError(
            f"slice {name} has more than {most} values, for example {min(values)!r}: bin it first, or raise "
            "slice_values"
        )
