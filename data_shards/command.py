"""How every command of the suite reads its configuration and reports the user's mistakes.

A command is a dataclass (the one place of its defaults) and a function that takes it::

    if __name__ == "__main__":
        run(PackConfig, pack_command)

Values come from defaults, then ``--config FILE.yaml`` (or just ``FILE.yaml``), then ``key=value`` or ``--key value``;
``--key`` alone means true.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import sys
import typing
from collections.abc import Callable, Iterator, Sequence, Set
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


class InputError(ValueError):
    """The user's mistake: one line that names the thing and the remedy. Commands exit with status 2."""


def parse(config_class: type[T], argv: Sequence[str]) -> T:
    """Build ``config_class`` from defaults, ``--config`` YAML and overrides; raise InputError on any misfit."""
    return _build(config_class, lambda parser: parser.parse_args(_as_options(argv, _switches(config_class))))


def from_dict(config_class: type[T], values: dict[str, Any]) -> T:
    """Build ``config_class`` from a plain dict (a YAML file, a plan row), as strictly as ``parse``."""
    return _build(config_class, lambda parser: parser.parse_object(values))


def from_yaml(config_class: type[T], path: str | Path) -> T:
    """Build ``config_class`` from a YAML file."""
    return parse(config_class, ["--config", str(path)])


def run(config_class: type[T], function: Callable[[T], Any], argv: Sequence[str] | None = None) -> None:
    """Parse the command line and call ``function``. InputError becomes one line on stderr and exit status 2."""
    try:
        function(parse(config_class, sys.argv[1:] if argv is None else argv))
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # `command | head` closes our output: not an error
        sys.stderr.close()


def to_dict(config: Any) -> dict[str, Any]:
    """Plain dict of a config dataclass, ready for YAML or JSON."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)

    return plain(dataclasses.asdict(config))


def read_yaml(path: str | Path) -> Any:
    """What a YAML file holds, read by libyaml where there is one: several times faster."""
    import yaml

    return yaml.load(Path(path).read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def write_yaml(path: str | Path, config: Any) -> None:
    """Write a config (dataclass or plain dict) as YAML in the order of its fields."""
    import yaml

    values = config if isinstance(config, dict) else to_dict(config)
    Path(path).write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")


def nearest(name: str, known: Sequence[str]) -> str:
    """``"; did you mean 'x'?"`` when a known name is close, else the list of known names."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(sorted(known))}"


def _build(config_class: type[T], read: Callable[[Any], Any]) -> T:
    import jsonargparse

    parser = _parser(config_class)
    try:
        values = parser.instantiate(read(parser))
    except jsonargparse.ArgumentError as error:
        raise InputError(_explain(str(error), config_class)) from None
    return config_class(**{field.name: values[field.name] for field in dataclasses.fields(config_class) if field.init})


def _resolve(config_class: type) -> None:
    """Replace annotations that are strings by their types. Left to it, jsonargparse would execute the imports below
    ``if TYPE_CHECKING`` in the command's file, and ``--help`` would load torch."""
    hints = typing.get_type_hints(config_class)
    annotations = config_class.__init__.__annotations__
    annotations.update({name: hints[name] for name in annotations if name in hints})
    for hint in hints.values():
        for inner in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(inner):
                _resolve(inner)


@cache
def _parser(config_class: type) -> Any:
    """Made once for each class: a sweep parses a thousand configs, and making a parser takes longer than using it."""
    import jsonargparse

    _resolve(config_class)
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(description=config_class.__doc__, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file; keys given on the command line win over it.")
    parser.add_class_arguments(config_class, nested_key=None)
    return parser


def _switches(config_class: type) -> set[str]:
    """The keys that are true or false, as options."""
    return {f"--{name}" for name, hint in typing.get_type_hints(config_class).items() if hint is bool}


def _as_options(argv: Sequence[str], switches: Set[str]) -> list[str]:
    """People type ``FILE.yaml``, ``key=value`` and ``--switch``; ``--config FILE.yaml`` and ``--key=value`` is what is
    parsed."""
    options: list[str] = []
    for argument, following in zip(argv, [*argv, ""][1:], strict=True):
        if re.match(r"[A-Za-z_][\w.-]*\+?=", argument):
            options.append(f"--{argument}")
        elif argument.endswith((".yaml", ".yml")) and not argument.startswith("-") and "--config" not in options[-1:]:
            options += ["--config", argument]
        elif argument in switches and following.lower() not in ("true", "false"):
            options.append(f"{argument}=true")
        else:
            options.append(argument)
    return options


def _explain(message: str, config_class: type) -> str:
    unknown = re.search(r"[Oo]ption '([\w.]+)' is not accepted|unrecognized arguments: -*([\w.]+)", message)
    if unknown:
        name = (unknown.group(1) or unknown.group(2)).split("=")[0]
        return f"unknown key {name!r}{nearest(name, list(dict.fromkeys(_keys(config_class))))}"
    message = re.sub(r'Parser key "([^"]+)":', r"\1:", message).replace("<class 'int'>", "an integer")
    return message.replace("the following arguments are required", "missing; give it as key=value or in --config")


def _keys(config_class: type, prefix: str = "") -> Iterator[str]:
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        yield prefix + field.name
        for inner in (hints[field.name], *typing.get_args(hints[field.name])):
            if dataclasses.is_dataclass(inner):
                yield from _keys(inner)
                yield from _keys(inner, f"{prefix}{field.name}.")
