"""One declaration, four faces: flag, environment name, key in the config file, row in the reference.

An option is a field of a pydantic model. Order: flag > environment > .env > config file > saved by the run that is
resumed > default. Nothing is read at import.

``json_schema_extra`` of a field may say ``flag`` (another flag name), ``off_flag`` (the flag that turns a switch off;
None: there is none), ``aliases`` (further flag names) and ``hidden``.
"""

from __future__ import annotations

import difflib
import json
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from heimdall.errors import ConfigError
from heimdall.logs import redact
from heimdall.settings import Settings

ENVIRONMENT_PREFIX = "HEIMDALL_"
MANY = (list, tuple, set, frozenset)
ModelT = TypeVar("ModelT", bound=BaseModel)


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


@dataclass(frozen=True)
class Layer:
    """Values from one source, and how to name the source of one of them."""

    values: Mapping[str, Any]
    origin: typing.Callable[[Option], str]
    is_text: bool = field(default=False, kw_only=True)


def options_of(model: type[BaseModel]) -> list[Option]:
    """The options that ``model`` declares, in the order of declaration."""
    options = []
    for name, info in model.model_fields.items():
        extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
        options.append(Option(name, info, typing.cast("Mapping[str, Any]", extra)))
    return options


def read(
    models: Sequence[type[BaseModel]],
    flags: Mapping[str, Any],
    *,
    file: Path | None = None,
    saved: Mapping[str, Any] | None = None,
) -> list[Any]:
    """One instance of each model, from all sources.

    ``flags``: field name to what the command line says, None where it says nothing. ``saved``: what a resumed run used.

    Raises :class:`~heimdall.errors.ConfigError` naming the option, the value and where the value came from.
    """
    declared = {option.name: option for model in models for option in options_of(model)}
    layers = [
        Layer({k: v for k, v in (saved or {}).items() if k in declared}, lambda o: f"{o.name} of the resumed run"),
        Layer(read_file(file, declared) if file else {}, lambda o: f"{o.name} in {file}"),
        *_environment_layers(list(declared.values())),
        Layer({k: v for k, v in flags.items() if v is not None}, lambda o: o.flag, is_text=True),
    ]
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer in layers:
        for name, value in layer.values.items():
            option = declared[name]
            values[name] = option.from_text(value) if layer.is_text and isinstance(value, str) else value
            origins[name] = layer.origin(option)
    return [build(model, values, origins) for model in models]


def build(model: type[ModelT], values: Mapping[str, Any], origins: Mapping[str, str] | None = None) -> ModelT:
    """``model`` from those of ``values`` that it declares; pydantic's report becomes one clear sentence."""
    own = {name: value for name, value in values.items() if name in model.model_fields}
    try:
        return model.model_validate(own)
    except ValidationError as error:
        raise ConfigError(sentence(error, origins or {})) from None


def settings() -> Settings:
    """Where things are, from the environment.

    Raises :class:`~heimdall.errors.ConfigError` naming the variable.
    """
    try:
        return Settings()
    except ValidationError as error:
        raise ConfigError(settings_sentence(error)) from None


def settings_sentence(error: ValidationError) -> str:
    """What is wrong with the settings; they are named as their variables."""
    return sentence(error, {name: name.upper() for name in Settings.model_fields})


def read_file(path: Path, declared: Iterable[str]) -> dict[str, Any]:
    """The keys of a JSON, TOML or YAML file.

    Raises :class:`~heimdall.errors.ConfigError` if it cannot be read, or has a key that is not declared.
    """
    names = list(declared)
    values = {str(key).replace("-", "_"): value for key, value in _parse(path).items()}
    for key in values:
        if key not in names:
            close = difflib.get_close_matches(key, names, n=3, cutoff=0.5)
            mend = f"Did you mean {' or '.join(close)}?" if close else f"Known keys: {', '.join(sorted(names))}."
            raise ConfigError(f"{path} has the unknown key {key!r}.", mend=mend)
    return values


def _parse(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"The config file {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"The config file {path} is not text in UTF-8.") from None
    try:
        match path.suffix.lower():
            case ".toml":
                found: Any = tomllib.loads(text)
            case ".json":
                found = json.loads(text)
            case ".yaml" | ".yml":
                import yaml

                found = yaml.safe_load(text) or {}
            case _:
                found = None
    except Exception as error:  # noqa: BLE001 - three parsers, three trees of errors
        raise ConfigError(f"The config file {path} cannot be understood: {' '.join(str(error).split())}.") from None
    if found is None:
        raise ConfigError(f"The config file {path} is of no kind we read.", mend="Use .toml, .json or .yaml.")
    if not isinstance(found, dict):
        raise ConfigError(f"The config file {path} holds no table of options.", mend="Write one option a line.")
    return found


def _environment_layers(options: Sequence[Option]) -> list[Layer]:
    from pydantic import create_model
    from pydantic_settings import BaseSettings, DotEnvSettingsSource, EnvSettingsSource

    fields: dict[str, Any] = {option.name: (Any, None) for option in options}
    reader = create_model("Reader", __base__=BaseSettings, **fields)
    how: dict[str, Any] = {"env_prefix": ENVIRONMENT_PREFIX, "env_ignore_empty": True}
    names = set(fields)

    def known(found: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in found.items() if name in names}

    try:
        dotenv = known(DotEnvSettingsSource(reader, env_file=Path(".env"), **how)())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The file .env cannot be read: {error}.") from None
    return [
        Layer(dotenv, lambda option: f"{option.environment} in .env", is_text=True),
        Layer(known(EnvSettingsSource(reader, **how)()), lambda option: option.environment, is_text=True),
    ]


def sentence(error: ValidationError, origins: Mapping[str, str]) -> str:
    """What pydantic found, in our words; ``origins`` says where the value of each field came from."""
    sentences = []
    for problem in error.errors(include_url=False, include_context=True):
        name = str(problem["loc"][0]) if problem["loc"] else ""
        where = origins.get(name, name)
        said = redact(str(problem["input"]))
        said = said if len(said) <= 80 else said[:77] + "…"
        message = problem["msg"].removeprefix("Value error, ").rstrip(".")
        if problem["type"] in {"literal_error", "enum"}:
            expected = str(problem.get("ctx", {}).get("expected", "")).replace(" or ", ", ").replace("'", "")
            sentences.append(f"{where} must be one of {expected.lstrip(', ')}; not {said!r}.")
        elif problem["type"] == "missing":
            sentences.append(f"{where} is required.")
        elif message.startswith("Input should "):
            sentences.append(f"{where} must {message.removeprefix('Input should ')}, not {said}.")
        elif message.startswith("must "):
            sentences.append(f"{where} {message}.")
        else:
            sentences.append(f"{where}: {message}." if where else f"{message}.")
    return " ".join(dict.fromkeys(sentences))


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
