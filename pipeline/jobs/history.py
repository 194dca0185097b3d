"""The nights of an audit: dated folders below one address, and an index that is written last."""

from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import takewhile
from typing import Any

from pipeline.errors import InputError
from pipeline.stream.ledger import Ledger
from schemas.audit import NightRecord

INDEX = "index.json"


class History:
    """Nights below an address.

    Args:
        address: of the folder of all nights.
        storage: fsspec options.
    """

    def __init__(self, address: str, storage: Mapping[str, Any]) -> None:
        self.ledger = Ledger(address, storage)
        self._address = address.rstrip("/")

    def nights(self) -> list[NightRecord]:
        """Finished nights, in the order in which they were first done."""
        saved = self.ledger.read_json(INDEX) or []
        return [NightRecord(**values) for values in saved]

    def before(self, night: str) -> list[NightRecord]:
        """Nights before this one; all of them where it is new."""
        return list(takewhile(lambda one: one.night != night, self.nights()))

    def folder(self, night: str) -> str:
        """Address of a night."""
        return f"{self._address}/{night}"

    def add(self, record: NightRecord) -> None:
        """Writes a night into the index; one that is done again keeps its place."""
        nights = {one.night: one for one in self.nights()} | {record.night: record}
        self.ledger.write_json([one.model_dump(mode="json") for one in nights.values()], INDEX)

    def earlier(self, against: str, night: str) -> str | None:
        """Address of the explanations that a night is compared with.

        Args:
            against: `previous`, the last one before it; `none`, the name of a night, or an address.
            night: that is compared; never with itself.

        Returns:
            None where there is nothing to compare with.

        Raises:
            InputError: no such night.
        """
        known = {one.night: one.explained for one in self.nights() if one.night != night}
        if against == "none":
            return None
        if against == "previous":
            return next((one.explained for one in reversed(self.before(night))), None)
        if against in known:
            return known[against]
        if "/" in against:
            return against
        raise InputError(
            f"against {against!r}: no such night in {self._address}; there are: {', '.join(known) or 'none'}; "
            "or give the address of an output of `raylens explain`"
        )


def today() -> str:
    """Name of tonight's run: the date, UTC."""
    return datetime.now(UTC).date().isoformat()
