"""``heimdall simulate TASK FOLDER``: a data set drawn from one seed."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(
    name="simulate",
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    epilog="Further options go to the task's simulator as --NAME VALUE, for example --seed 7 --sessions 500.",
)
@click.argument("task")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.pass_context
def command(context: click.Context, task: str, folder: Path) -> None:
    """Write a data set drawn from one seed into FOLDER.

    TASK is localization, ptychography, or an installed task of your own.
    """
    from heimdall.tasks.base import find_task

    where = find_task(task).simulate(folder, pairs(context.args))
    click.echo(f"Wrote {where}")


def pairs(words: list[str]) -> dict[str, str]:
    """``["--seed", "7", "--big=yes"]`` as ``{"seed": "7", "big": "yes"}``."""
    from heimdall.errors import UsageError

    found: dict[str, str] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise UsageError(f"{word!r} is not an option.", mend="Write --NAME VALUE.")
        name, equals, value = word.removeprefix("--").partition("=")
        if not equals:
            if not rest:
                raise UsageError(f"--{name} has no value.", mend=f"Write --{name} VALUE.")
            value = rest.pop(0)
        found[name.replace("-", "_")] = value
    return found
