"""Random samples that add up: the images whose hashed identity is lowest.

The k lowest of all hashes are a uniform sample without replacement, whatever the order of the files and however they
are split among workers. Two runs hash alike, so their samples hold the same images as far as both runs do.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Columns: TypeAlias = dict[str, NDArray[Any]]

KEY = "key"
TIE = "row"
LAST = np.uint64(2**64 - 1)


def keys(sample_ids: NDArray[np.object_], seed: int) -> NDArray[np.uint64]:
    """Hashes of identities: the same on every machine, another order for every seed."""
    return np.asarray(pd.util.hash_array(sample_ids, hash_key=f"{seed % 10**16:016d}", categorize=False))


@dataclass(frozen=True, eq=False)
class Sample:
    """The rows with the lowest keys, of everything or of each group; samples of one limit add up.

    Attributes:
        limit: rows, or rows of a group.
        columns: arrays of equal length, with KEY and TIE; in order of the keys.
        by: column that holds the group; None without groups.
    """

    limit: int
    columns: Columns
    by: str | None = None

    def __len__(self) -> int:
        return len(self.columns[KEY])

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.columns[name]

    @property
    def bound(self) -> np.uint64:
        """The key below which every row is in the sample, which has no groups."""
        assert self.by is None
        return np.uint64(self[KEY][-1]) if len(self) >= self.limit else LAST

    def admits(self, key: NDArray[np.uint64], group: NDArray[Any]) -> NDArray[np.bool_]:
        """Which rows can be in the sample; spares the reading of what is wide of the others.

        Args:
            key: (N,) hashes.
            group: (N,) of each row; any without groups.

        Returns:
            (N,).
        """
        if self.by is None:
            return np.less_equal(key, self.bound)
        names, first, counts = np.unique(self[self.by], return_index=True, return_counts=True)
        highest = np.maximum.reduceat(self[KEY], first) if len(first) else np.zeros(0, np.uint64)
        bounds = np.append(np.where(counts >= self.limit, highest, LAST), LAST)
        place = np.searchsorted(names, group)
        known = np.append(names, 0)[place] == group
        return np.less_equal(key, np.where(known, bounds[place], LAST))

    def __add__(self, other: "Sample") -> "Sample":
        return Sample.of(
            {name: np.concatenate([values, other.columns[name]]) for name, values in self.columns.items()},
            self.limit,
            by=self.by,
        )

    @classmethod
    def of(cls, columns: Mapping[str, NDArray[Any]], limit: int, *, by: str | None = None) -> "Sample":
        """The sample of some rows.

        Args:
            columns: arrays of equal length, with KEY and TIE.
            limit: rows, or rows of a group.
            by: column that holds the group.

        Returns:
            At most `limit` rows, or `limit` of each group, which then stand together.
        """
        if by is None:
            kept = np.lexsort((columns[TIE], columns[KEY]))[:limit]
        else:
            order = np.lexsort((columns[TIE], columns[KEY], columns[by]))
            _, first, counts = np.unique(columns[by][order], return_index=True, return_counts=True)
            kept = order[np.arange(len(order)) - np.repeat(first, counts) < limit]
        return cls(limit, {name: values[kept] for name, values in columns.items()}, by)
