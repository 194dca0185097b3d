"""Command-line flags of a specification: one for every field, in its panel, with its description."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import typer
import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from pipeline.errors import SpecError

Values = dict[str, Any]
ONE_EACH = {
    "model_args": "--model-arg",
    "method_args": "--method-arg",
    "attributes": "--attribute",
    "slices": "--slice",
    "methods": "--method",
}
"""Flags that are given once for each of their values."""
ENVIRONMENT = {"progress": "RAYLENS_LOG"}
"""Variables that stand for a flag."""
LISTS = ("input", "attributes", "slices", "methods")
Spec = TypeVar("Spec", bound=BaseModel)


def with_flags(
    spec: type[BaseModel],
    panels: Mapping[str, tuple[str, ...]],
    run: Callable[[Values], None],
    **more: Any,
) -> Callable[..., None]:
    """A command function whose options are the fields of a specification.

    Args:
        spec: the specification's class.
        panels: field names by the title under which `--help` shows them.
        run: called with `config` and the fields that were given.
        **more: further parameters of the command, by name, as typer's annotations; a default of None.

    Returns:
        A function for `typer.Typer.command`.
    """

    def command(**values: Any) -> None:
        run({name: value for name, value in values.items() if value not in (None, [], ())})

    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_option(name, spec, panel))
        for panel, names in panels.items()
        for name in names
    ] + [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in more.items()
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__doc__ = run.__doc__
    return command


def _option(name: str, spec: type[BaseModel], panel: str) -> Any:
    if name == "config":
        return Annotated[
            Path | None, typer.Option(help="YAML file with these fields; flags win.", rich_help_panel=panel)
        ]
    info = spec.model_fields[name]
    flag = ONE_EACH.get(name, f"--{name.replace('_', '-')}")
    if info.annotation is bool:
        flags = [flag] if info.default is False else [f"{flag}/--no-{flag[2:]}"]
        return Annotated[bool | None, typer.Option(*flags, help=_help(info), rich_help_panel=panel, show_default=False)]
    kind: Any = list[str] if _is_mapping(info) or name in LISTS else str
    return Annotated[
        kind | None,
        typer.Option(
            flag,
            help=_help(info),
            metavar=_metavar(info, name),
            envvar=ENVIRONMENT.get(name),
            rich_help_panel=panel,
            show_default=False,
        ),
    ]


def _help(info: FieldInfo) -> str:
    shown = info.default not in (None, False, True, ()) and not info.is_required() and info.default_factory is None
    return f"{info.description} [default: {info.default}]" if shown else str(info.description)


def _metavar(info: FieldInfo, name: str) -> str:
    if _is_mapping(info):
        return "KEY=VALUE"
    choices = get_args(info.annotation) if get_origin(info.annotation) is not None else ()
    if choices and all(isinstance(choice, str) for choice in choices):
        return "|".join(choices)
    return name.rsplit("_", 1)[-1].upper()


def _is_mapping(info: FieldInfo) -> bool:
    return get_origin(info.annotation) is dict


def parsed(spec: type[Spec], values: Values) -> Spec:
    """Builds a specification from a YAML file and flags.

    Args:
        spec: the specification's class.
        values: fields as text, and `config` with the file's path.

    Returns:
        The validated specification.

    Raises:
        SpecError: the file cannot be read, or a field is wrong; the message names each.
    """
    return built(spec, merged(spec, values))


def merged(spec: type[BaseModel], values: Values) -> Values:
    """The fields of a YAML file with those of flags over them, not validated.

    Args:
        spec: the specification's class.
        values: fields as text, and `config` with the file's path.

    Returns:
        Fields by name.

    Raises:
        SpecError: the file cannot be read.
    """
    given = dict(values)
    content = _file(given.pop("config", None))
    for name, value in given.items():
        info = spec.model_fields[name]
        if _is_mapping(info):
            content[name] = {**_mapping(name, content.get(name)), **pairs(name, value)}
        else:
            content[name] = _items(name, info, value) if isinstance(value, str) else value
    return content


def built(spec: type[Spec], content: Values) -> Spec:
    """The specification of some fields.

    Args:
        spec: its class.
        content: fields by name.

    Returns:
        The validated specification.

    Raises:
        SpecError: a field is wrong; the message names each.
    """
    try:
        return spec(**content)
    except ValidationError as error:
        raise SpecError("the specification is wrong:\n" + "\n".join(_problem(e) for e in error.errors())) from error


def _file(path: Path | None) -> Values:
    if path is None:
        return {}
    try:
        content = yaml.safe_load(path.read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        raise SpecError(f"--config {path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise SpecError(
            f"--config {path} holds {type(content).__name__}, expected fields such as `input: s3://bucket/images`"
        )
    return content


def _mapping(name: str, value: object) -> Values:
    if value is not None and not isinstance(value, dict):
        raise SpecError(f"{name}: expected KEY: VALUE lines in the file, found {value!r}")
    return value or {}


def pairs(name: str, items: list[str]) -> Values:
    """Values of a flag that is given as KEY=VALUE; a value is read as YAML.

    Args:
        name: of the field.
        items: what was given.

    Returns:
        Values by key.

    Raises:
        SpecError: an item is no pair, or its value is no YAML.
    """
    found = {}
    for item in items:
        key, sign, value = item.partition("=")
        if not sign or not key:
            raise SpecError(f"--{name.replace('_', '-')} {item!r}: expected KEY=VALUE")
        found[key] = _value(name, value)
    return found


def _value(name: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SpecError(f"--{name.replace('_', '-')}: expected a value as in YAML, found {text!r}; quote it") from error


def _items(name: str, info: FieldInfo, text: str) -> Any:
    """`0.5,0.5,0.5` for a tuple, `224` for a pair; other values stay text, which pydantic reads."""
    if "tuple" not in str(info.annotation):
        return text
    parts = [_value(name, part) for part in text.replace("x", ",").split(",")]
    return parts[0] if len(parts) == 1 else parts


def _problem(error: Mapping[str, Any]) -> str:
    place = ".".join(str(part) for part in error["loc"])
    if error["type"] == "missing":
        return f"  {place}: missing; add --{place.replace('_', '-')} or `{place}:` in the file"
    if error["type"] == "extra_forbidden":
        return f"  {place}: no such field"
    found = f", found {error['input']!r}" if place else ""
    return f"  {place or 'fields'}: {error['msg'].removeprefix('Value error, ')}{found}"
