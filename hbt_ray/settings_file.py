"""Settings files: YAML with `key=value` from the command line on top, checked by pydantic, every mistake in our words.

A value from the command line replaces the file's before the check, so both are held to the same rules. No message
shows a line of YAML that cannot be read, and credentials are refused before anything else is said of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from hbt_ray.credentials import refuse_credentials, refuse_credentials_in, without_credentials
from hbt_ray.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)


class Section(BaseModel):
    """A part of a settings file: frozen, unknown keys refused.

    A validator says where in its section a mistake is: ConfigError("warmup_steps", ...), or "" for the section itself.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def read_yaml(path: Path, expected: str, keys: str) -> dict[str, Any]:
    """The content of a YAML file of keys.

    Args:
        path: the file.
        expected: what it should be, for the message: "a sweep's YAML file".
        keys: some that it should have, for the message.

    Raises:
        ConfigError: file absent, not UTF-8, not YAML, not a mapping, a credential in it.
    """
    try:
        with path.open(encoding="utf-8") as file:  # of a stream, YAML's errors say the line and do not show it
            raw = yaml.safe_load(file)
    except OSError as error:
        raise ConfigError(str(path), error.strerror, expected, "Check the path.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), " ".join(str(error).split()), "valid YAML", "Mend the file.") from None
    if not isinstance(raw, dict):
        raise ConfigError(str(path), type(raw).__name__, f"keys such as {keys}", "Add them.")
    refuse_credentials_in(raw, str(path))
    return raw


def parsed_setting(setting: str, form: str, example: str) -> tuple[str, Any]:
    """Key and value of `key=value`, the value as YAML. Raises ConfigError, which shows `form` and `example`."""
    key, equals, text = setting.partition("=")
    if not equals or not key:
        raise ConfigError("--set", repr(without_credentials(setting)), form, f"For example --set {example}.")
    refuse_credentials(f"--set {without_credentials(key)}", setting)
    try:
        return key, yaml.safe_load(StringIO(text))
    except yaml.YAMLError as error:
        message = " ".join(str(error).split())
        raise ConfigError(f"--set {key}", message, "a YAML value", "Quote or close it.") from None


def put(raw: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    """Put a value at keys inside keys, making the sections that are not there. Raises ConfigError."""
    *sections, last = keys
    for section in sections:
        if raw.get(section) is None:
            raw[section] = {}
        if not isinstance(raw[section], dict):
            where = f"--set {'.'.join(keys)}"
            received = f"a plain value at {section!r}"
            raise ConfigError(where, received, "a section there", "Name a key inside a section.")
        raw = raw[section]
    raw[last] = value


def checked(model: type[Model], raw: Mapping[str, Any], source: str) -> Model:
    """Raw values as settings. Raises ConfigError naming `source`, the key and, of an unknown one, the nearest known.

    A credential is refused with its key, and not shown.
    """
    refuse_credentials_in(raw, source)
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise _config_error(error, source, model) from None


def nearest(
    value: str, known: Iterable[str], otherwise: str = "Choose one of these.", cutoff: float = 0.5
) -> tuple[str, str]:
    """What was expected of a name, and the fix: the known name that is nearest, if one is as near as `cutoff`."""
    names = list(known)
    near = get_close_matches(value, names, n=1, cutoff=cutoff)
    return f"one of {', '.join(names)}", f"Did you mean {near[0]!r}?" if near else otherwise


def _config_error(error: ValidationError, source: str, model: type[BaseModel]) -> ConfigError:
    """The first problem in our words; an unknown key comes first because it often explains the others."""
    problem = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    location, section = _located(problem["loc"], model)
    key = ".".join(location)
    where = f"{source}: {key}"
    if problem["type"] == "extra_forbidden":
        expected, fix = nearest(location[-1], section.model_fields, "Remove it or use a known key.")
        return ConfigError(where, f"unknown key {location[-1]!r}", expected, fix)
    if problem["type"] == "missing":
        return ConfigError(where, "nothing", "a value (the key has no default)", f"Add {key}.")
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):
        place = ".".join(filter(None, (key, cause.where)))
        return ConfigError(f"{source}: {place}", cause.received, cause.expected, cause.fix)
    message = problem["msg"]
    return ConfigError(where, repr(problem["input"]), message[0].lower() + message[1:], f"Correct {key}.")


def _located(loc: Sequence[int | str], model: type[BaseModel]) -> tuple[list[str], type[BaseModel]]:
    """The keys of a problem as in the file, and the innermost section around it.

    Where a field may hold one of several things, pydantic puts the tag of the one that was meant among the keys: in
    parentheses, or the `name` of a section.
    """
    keys: list[str] = []
    sections: list[type[BaseModel]] = [model]
    for part in map(str, loc):
        meant = [other for other in sections if _name_of(other) == part]
        if part.startswith("(") or (meant and len(sections) > 1):
            sections = meant or sections
            continue
        keys.append(part)
        field = sections[0].model_fields.get(part)
        if field is not None:
            sections = list(_sections_of(field.annotation)) or sections
    return keys, sections[0]


def _name_of(section: type[BaseModel]) -> object:
    field = section.model_fields.get("name")
    return None if field is None else field.default


def _sections_of(annotation: object) -> Iterator[type[BaseModel]]:
    """The sections that a field may hold, itself or in a container."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _sections_of(part)
