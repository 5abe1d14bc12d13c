"""An option as it is declared: a field of a pydantic model, seen as flag, environment name and key of a file.

``json_schema_extra`` of a field may say ``flag`` (another flag name), ``off_flag`` (the flag that turns a switch off;
None: there is none), ``aliases`` (further flag names) and ``hidden``.
"""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

ENVIRONMENT_PREFIX = "HEIMDALL_"
MANY = (list, tuple, set, frozenset)


@dataclass(frozen=True)
class Option:
    """A field of a configuration model, as people meet it."""

    name: str
    info: FieldInfo
    extra: Mapping[str, Any]

    @property
    def flag(self) -> str:
        """Long flag with dashes, for example ``--learning-rate``."""
        return _flag(self.extra.get("flag", self.name))

    @property
    def off_flag(self) -> str | None:
        """The flag that turns a switch off, for example ``--no-pretrained``."""
        off = self.extra.get("off_flag", f"no_{self.extra.get('flag', self.name)}")
        return _flag(off) if off else None

    @property
    def aliases(self) -> list[str]:
        """Further flags that mean the same."""
        return [_flag(alias) for alias in self.extra.get("aliases", [])]

    @property
    def hidden(self) -> bool:
        """Whether help and reference keep silent about it."""
        return bool(self.extra.get("hidden", False))

    @property
    def environment(self) -> str:
        """Name of the environment variable."""
        return ENVIRONMENT_PREFIX + self.name.upper()

    @property
    def is_switch(self) -> bool:
        """Whether it is on or off."""
        return self.info.annotation is bool

    @property
    def is_many(self) -> bool:
        """Whether it holds several values: given as JSON, or separated by commas."""
        return any((typing.get_origin(kind) or kind) in MANY for kind in _members(self.info.annotation))

    @property
    def choices(self) -> list[Any]:
        """The values there are, where they can be listed."""
        found: list[Any] = []
        for kind in _members(self.info.annotation):
            if typing.get_origin(kind) is typing.Literal:
                found += [value for value in typing.get_args(kind) if value != ""]
            elif isinstance(kind, type) and issubclass(kind, Enum):
                found += [member.value for member in kind]
        return found

    @property
    def kind(self) -> str:
        """What to write: INT, FLOAT, PATH, TEXT, or the choices."""
        if self.choices:
            return "|".join(str(choice) for choice in self.choices)
        if self.is_many:
            return "LIST"
        names = {int: "INT", float: "FLOAT", Path: "PATH", bool: "on|off", dict: "JSON"}
        return next(
            (names[k] for k in (typing.get_origin(m) or m for m in _members(self.info.annotation)) if k in names),
            "TEXT",
        )

    @property
    def default(self) -> str:
        """The default, for people; empty where it is decided later."""
        if self.info.is_required():
            return "required"
        value = self.info.get_default(call_default_factory=True, validated_data={})
        if self.is_switch:
            return "on" if value else "off"
        if isinstance(value, Enum):
            value = value.value
        if isinstance(value, MANY):
            return ",".join(str(part) for part in value)
        return "" if value is None else str(value)

    def from_text(self, text: str) -> Any:
        """What a flag or a variable says, as pydantic wants it."""
        if text.lower() in {"none", "null"} and type(None) in _members(self.info.annotation):
            return None
        if self.is_many or dict in [typing.get_origin(m) or m for m in _members(self.info.annotation)]:
            try:
                return json.loads(text)
            except ValueError:
                return [part.strip() for part in text.split(",") if part.strip()]
        plain = {_plain(str(choice)): choice for choice in self.choices}
        return plain.get(_plain(text), text)


def options_of(model: type[BaseModel]) -> list[Option]:
    """The options that ``model`` declares, in the order of declaration."""
    options = []
    for name, info in model.model_fields.items():
        extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
        options.append(Option(name, info, typing.cast("Mapping[str, Any]", extra)))
    return options


def _members(annotation: Any) -> list[Any]:
    """The kinds a value may have: ``int | None`` gives int and NoneType."""
    if typing.get_origin(annotation) in {typing.Union, types.UnionType}:
        return [kind for part in typing.get_args(annotation) for kind in _members(part)]
    if typing.get_origin(annotation) is typing.Annotated:
        return _members(typing.get_args(annotation)[0])
    return [annotation]


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _plain(text: str) -> str:
    return text.lower().replace("-", "_")
