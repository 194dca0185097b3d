"""Things that are chosen by name and have parameters: methods, metrics, slicers."""

import inspect
from collections.abc import Collection, Mapping
from typing import TypeVar

from pipeline.errors import MethodError

Kind = TypeVar("Kind")


def chosen(what: str, catalogue: Mapping[str, type[Kind]], name: str, parameters: Mapping[str, object]) -> Kind:
    """Makes one thing of a catalogue.

    Args:
        what: it is, for messages.
        catalogue: classes by name.
        name: key of it.
        parameters: of the class.

    Returns:
        The thing.

    Raises:
        MethodError: there is none of that name, it has no such parameter, or a parameter is out of range.
    """
    return named(what, catalogue, name, parameters)(**parameters)


def named(
    what: str,
    catalogue: Mapping[str, type[Kind]],
    name: str,
    parameters: Mapping[str, object],
    *,
    bound: Collection[str] = (),
) -> type[Kind]:
    """The class of a name, if it has the parameters.

    Args:
        what: it is, for messages.
        catalogue: classes by name.
        name: key of it.
        parameters: of the class.
        bound: parameters that are not the user's to give.

    Returns:
        The class.

    Raises:
        MethodError: there is none of that name, or it has no such parameter.
    """
    if name not in catalogue:
        raise MethodError(f"no {what} is named {name!r}; there are: {', '.join(catalogue)}")
    known = [one for one in inspect.signature(catalogue[name]).parameters if one not in bound]
    if unknown := sorted(parameters.keys() - set(known)):
        raise MethodError(f"{what} {name} has no parameter {', '.join(unknown)}; it has: {', '.join(known) or 'none'}")
    return catalogue[name]
