"""``heimdall simulate TASK FOLDER``: a data set drawn from one seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


class Simulators(click.Group):
    """One command a task; a task is imported only when its command runs or shows its help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the installed tasks."""
        del ctx
        from heimdall.tasks.base import task_names

        return task_names()

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        """The command of one task, with the options its simulator declares."""
        del ctx
        return simulate_command(cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the tasks without importing them."""
        names = self.list_commands(ctx)
        with formatter.section("Tasks"):
            formatter.write_dl([(name, f"heimdall simulate {name} --help shows its options") for name in names])


def simulate_command(name: str) -> click.Command:
    """``heimdall simulate NAME FOLDER``. A task's ``simulation_model`` declares the options."""
    from heimdall.tasks.base import find_task
    from heimdall.training.command import as_click
    from heimdall.training.declared import options_of
    from heimdall.training.options import build

    task = find_task(name)
    model = getattr(task, "simulation_model", None)
    declared = options_of(model) if model else []

    def run(folder: Path, **flags: Any) -> None:
        given = {option.name: flags[option.name] for option in declared if flags[option.name] is not None}
        values = {
            o.name: o.from_text(v) if isinstance(v := given[o.name], str) else v for o in declared if o.name in given
        }
        origins = {option.name: option.flag for option in declared}
        chosen = build(model, values, origins).model_dump() if model else {}
        click.echo(f"Wrote {task.simulate(folder, chosen)}")

    where = click.Argument(["folder"], type=click.Path(path_type=Path, file_okay=False))
    options = [as_click(option) for option in declared]
    return click.Command(name, params=[where, *options], callback=run, help=f"Simulate data for {name} into FOLDER.")


@click.command(cls=Simulators, name="simulate")
def command() -> None:
    """Write a data set drawn from one seed."""
