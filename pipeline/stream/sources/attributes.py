"""Values of the input that are carried along to the output, to slice by."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

FOLDER = "folder"
"""The image's folder, as an attribute or label; a column of this name goes before it."""


def folder_of(address: str) -> str:
    """The name of the folder that an image is in."""
    return address.rsplit("/", 2)[-2]


def texts(row: Mapping[str, Any], names: Sequence[str]) -> dict[str, str]:
    """The named values of a row, as text.

    Args:
        row: of the input.
        names: wanted.

    Returns:
        Text by name, structures as JSON; without those that are missing or null.
    """
    values = {name: row.get(name) for name in names}
    return {
        name: json.dumps(value, default=str) if isinstance(value, list | dict) else str(value)
        for name, value in values.items()
        if value is not None
    }
