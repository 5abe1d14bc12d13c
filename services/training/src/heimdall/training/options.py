"""One declaration, four faces: flag, environment name, key in the config file, row in the reference.

An option is a field of a pydantic model. Order: flag > environment > .env > config file > saved by the run that is
resumed > default. Nothing is read at import.
"""

from __future__ import annotations

import difflib
import json
import tomllib
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from heimdall.errors import ConfigError
from heimdall.logs import redact
from heimdall.settings import Settings
from heimdall.training.declared import ENVIRONMENT_PREFIX, Option, options_of

ModelT = TypeVar("ModelT", bound=BaseModel)


@dataclass(frozen=True)
class Layer:
    """Values from one source, and how to name the source of one of them."""

    values: Mapping[str, Any]
    origin: typing.Callable[[Option], str]
    is_text: bool = field(default=False, kw_only=True)


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
