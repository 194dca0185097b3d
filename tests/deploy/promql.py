"""Names and labels in PromQL, for queries that are checked against what is exposed."""

import re
from typing import NamedTuple

WORDS = frozenset(("and", "or", "unless", "bool", "inf", "nan"))
STRING = re.compile(r'"(?:\\.|[^"\\])*"')
GROUPING = re.compile(r"\b(by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
SELECTOR = re.compile(r"(?<![\w:.])([A-Za-z_:][\w:]*)\s*(?:\{([^}]*)\})?(?!\s*\()(?![\w:])")


class Selector(NamedTuple):
    """A metric with the labels that are matched.

    Attributes:
        metric: name.
        labels: names of its matchers.
    """

    metric: str
    labels: frozenset[str]


def selectors(query: str) -> set[Selector]:
    """Every metric of a query.

    Args:
        query: valid PromQL.

    Returns:
        Metrics with their matchers.
    """
    bare = GROUPING.sub("", STRING.sub('""', query))
    bare = re.sub(r"\[[^]]*\]|\boffset\s+\w+", "", bare)
    return {
        Selector(match[1], frozenset(re.findall(r"(\w+)\s*[=!]", match[2] or "")))
        for match in SELECTOR.finditer(bare)
        if match[1].lower() not in WORDS
    }


def grouped(query: str) -> set[str]:
    """Labels that a query groups or matches series by."""
    lists = [match[2] for match in GROUPING.finditer(STRING.sub('""', query))]
    return {name for names in lists for name in re.findall(r"\w+", names)}
