"""Writes docs/reference/configuration.md from the declarations: ``python -m heimdall.training.reference [FILE]``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, SecretStr

from heimdall.settings import SECRETS_FROM_FILES, Settings
from heimdall.tasks.base import find_task, task_names
from heimdall.training.config import RunConfig
from heimdall.training.declared import Option, options_of

DEFAULT_FILE = Path("docs/reference/configuration.md")

HEAD = """# Configuration

<!-- Written by `python -m heimdall.training.reference`; change the declarations, then run it again. -->

What is trained, and how, is said by **options**. Each option is declared once and has four faces: a flag
(`--learning-rate`, `--learning_rate` too), an environment variable (`HEIMDALL_LEARNING_RATE`), a key in a `--config`
file (`learning_rate`; TOML, JSON or YAML), and a row here. Order: flag > environment > `.env` > config file >
default; a resumed run takes its own options in place of the defaults. An unknown key in a file is an error that names
the nearest known ones. Lists are written as JSON or with commas.

Where things are (servers, credentials, folders) is said by **settings**, from the environment and `.env` alone.
"""


def reference() -> str:
    """The whole page."""
    parts = [HEAD, *_section("Options of every run", RunConfig)]
    for name in task_names():
        task = find_task(name)
        if not type(task).__module__.startswith("heimdall."):
            continue  # a task of somebody else's, installed here
        parts += _section(f"Options of `heimdall train {name}`", task.config_model)
        if (simulation := getattr(task, "simulation_model", None)) is not None:
            parts += _section(f"Options of `heimdall simulate {name}`", simulation, flags_only=True)
    parts += ["\n## Settings\n\n", "| variable | purpose | default |\n|---|---|---|\n", *_settings()]
    return "".join(parts)


def _section(title: str, model: type[BaseModel], *, flags_only: bool = False) -> Iterator[str]:
    yield f"\n## {title}\n\n"
    yield "| flag | purpose | default |\n|---|---|---|\n" if flags_only else _OPTIONS_HEAD
    for option in options_of(model):
        if not option.hidden:
            yield _row(option, flags_only=flags_only)


_OPTIONS_HEAD = "| flag | key | purpose | default |\n|---|---|---|---|\n"


def _row(option: Option, *, flags_only: bool) -> str:
    flag = f"`{option.flag}`"
    if option.is_switch:
        flag += f" / `{option.off_flag}`" if option.off_flag else ""
    elif not option.choices:
        flag += f" {option.kind}"
    for alias in option.aliases:
        flag += f", `{alias}`"
    purpose = option.info.description or ""
    if option.choices:
        purpose += " One of: " + ", ".join(f"`{choice}`" for choice in option.choices) + "."
    cells = [flag, purpose, option.default] if flags_only else [flag, f"`{option.name}`", purpose, option.default]
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |\n"


def _settings() -> Iterator[str]:
    for name, info in Settings.model_fields.items():
        variable = name.upper()
        purpose = info.description or ""
        if variable in SECRETS_FROM_FILES:
            purpose += f" Or name a file that holds it: `{variable}_FILE`."
        default = info.get_default()
        text = default.get_secret_value() if isinstance(default, SecretStr) else str(default)
        yield f"| `{variable}` | {_cell(purpose)} | {_cell(text)} |\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    """Write the page."""
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_FILE
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(reference(), encoding="utf-8")


if __name__ == "__main__":
    main()
