"""Click commands made from configuration models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel

from heimdall.training.declared import ENVIRONMENT_PREFIX, Option, options_of

WIDEST_METAVAR = 40
EPILOG = (
    f"Each option may also be set as environment variable {ENVIRONMENT_PREFIX}<OPTION>, in .env, or as a key in the "
    "--config file. Order: flag, environment, .env, file, default."
)


class SectionedCommand(click.Command):
    """A command whose help shows the options of each model in a section of its own."""

    def __init__(self, *args: Any, sections: Mapping[str, Sequence[str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sections = sections

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one list of options a section."""
        rows = {p.name: p.get_help_record(ctx) for p in self.get_params(ctx)}
        for title, names in self.sections.items():
            with formatter.section(title):
                formatter.write_dl([row for name in names if (row := rows.get(name))])
        placed = {name for names in self.sections.values() for name in names}
        rest = [row for name, row in rows.items() if name not in placed and row]
        with formatter.section("General"):
            formatter.write_dl(rest)


def make_command(
    name: str,
    help_text: str,
    sections: Mapping[str, type[BaseModel]],
    run: Callable[[dict[str, Any], Path | None], Any],
    *,
    config_file: bool = True,
) -> click.Command:
    """A command with the options of the models in ``sections``; ``run`` gets what the flags say, and the file."""
    params: list[click.Parameter] = []
    if config_file:
        params.append(
            click.Option(
                ["--config", "config_file"],
                type=click.Path(path_type=Path),
                envvar=f"{ENVIRONMENT_PREFIX}CONFIG",
                help="File with options (.toml, .json, .yaml).",
            )
        )
    for model in sections.values():
        params += [as_click(option) for option in options_of(model)]

    def callback(config_file: Path | None = None, **flags: Any) -> Any:
        return run(flags, config_file)

    return SectionedCommand(
        name,
        params=params,
        callback=callback,
        help=help_text,
        epilog=EPILOG,
        sections={title: [option.name for option in options_of(model)] for title, model in sections.items()},
    )


def as_click(option: Option) -> click.Option:
    """The flag of an option. Its value stays text: pydantic checks it, wherever it comes from."""
    default = f"  [{option.default}]" if option.default else ""
    help_text = f"{option.info.description or ''}{default}"
    names = [option.flag, *option.aliases]
    metavar = option.kind
    if len(metavar) > WIDEST_METAVAR:
        metavar, help_text = "NAME", f"{help_text} One of: {', '.join(map(str, option.choices))}."
    if option.is_switch:
        declaration = f"{option.flag}/{option.off_flag}" if option.off_flag else option.flag
        return click.Option(
            [option.name, declaration, *option.aliases],
            is_flag=True,
            default=None,
            help=help_text,
            hidden=option.hidden,
        )
    return click.Option([option.name, *names], type=str, metavar=metavar, help=help_text, hidden=option.hidden)
