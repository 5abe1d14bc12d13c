"""``heimdall models``: list, register, promote, rollback, history, export."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from heimdall.commands.tables import print_table
from heimdall.errors import HoldError

if TYPE_CHECKING:
    from heimdall.registry.promote import Decision

SUMMARY = "Register, promote, roll back and export models."
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Write JSON, for machines.")
REASON = click.option("--reason", default="", help="Why; kept in the ledger.")


@click.group(help=SUMMARY)
def command() -> None:
    """See the module."""


@command.command("list")
@AS_JSON
def list_models(as_json: bool) -> None:
    """All registered models with their versions, aliases and last verdicts."""
    from heimdall.registry.listing import list_versions
    from heimdall.settings import Settings

    versions = list_versions(Settings())
    if as_json:
        click.echo(json.dumps([version.model_dump() for version in versions], indent=1))
    elif not versions:
        click.echo("No model is registered yet. Register one: heimdall models register --run best")
    else:
        rows = [
            (
                v.name,
                v.version,
                ", ".join(v.aliases),
                v.stage,
                v.created[:16].replace("T", " "),
                v.run_id[:8],
                v.verdict,
            )
            for v in versions
        ]
        print_table("", ("model", "version", "aliases", "stage", "registered", "run", "last verdict"), rows)


@command.command()
@click.argument("run_argument", metavar="[RUN]", default="")
@click.option("--run", "run_option", default="", help="Run id or key, or best.")
@click.option("--metric", default="val/loss", show_default=True, help="What makes a run the best.")
@click.option(
    "--mode", type=click.Choice(["min", "max"]), default="min", show_default=True, help="Whether less is better."
)
@click.option("--description", default="", help="A sentence for the model's page.")
def register(run_argument: str, run_option: str, metric: str, mode: Any, description: str) -> None:
    """Register the best checkpoint of RUN (or --run best). Running it again gives the same version."""
    from heimdall.registry.from_run import register_run
    from heimdall.settings import Settings

    if run_argument and run_option:
        raise click.UsageError("Name the run once: as RUN or with --run.")
    run = run_argument or run_option or "best"
    result = register_run(run, Settings(), metric=metric, mode=mode, description=description)
    click.echo(f"Registered {result.name} version {result.version}: {result.uri}")
    click.echo(f"Into production: heimdall models promote {result.name} {result.version} --to champion --data DATA")


@command.command()
@click.argument("name")
@click.argument("version")
@click.option("--to", "alias", default="champion", show_default=True, help="champion or challenger.")
@click.option("--data", default="", help="Data set to judge on: folder, file or s3://…; default: the gates file's.")
@click.option(
    "--gates", "gates_file", type=click.Path(path_type=Path), help="Gates (.toml, .yaml, .json); default: the task's."
)
@click.option("--force", is_flag=True, help="Move the alias whatever the verdict; needs --reason, is recorded.")
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True, help="Samples evaluated at once.")
@REASON
@AS_JSON
def promote(name: str, version: str, as_json: bool, **options: Any) -> None:
    """Judge VERSION against the champion on the same data; move the alias on PROMOTE only. HOLD ends with code 3."""
    from heimdall.registry.promote import promote as promote_version
    from heimdall.settings import Settings

    decision = promote_version(name, version, Settings(), **options)
    if as_json:
        click.echo(_decision_json(decision))
    else:
        _print_decision(name, decision)
    if decision.held:
        raise HoldError(
            f"Version {version} of {name} was held back: {'; '.join(decision.entry.reasons)}.",
            mend=f"Nothing was moved; the attempt is entry {decision.entry.number} of the ledger."
            + (" --force --reason … overrides." if decision.judgement else ""),
        )


@command.command()
@click.argument("name")
@click.option("--to", default="", help="A version, instead of the previous champion.")
@REASON
@AS_JSON
def rollback(name: str, to: str, reason: str, as_json: bool) -> None:
    """Give the alias champion back to the previous champion; recorded."""
    from heimdall.registry.promote import rollback as roll_back
    from heimdall.settings import Settings

    decision = roll_back(name, Settings(), reason=reason, to=to)
    if as_json:
        click.echo(_decision_json(decision))
        return
    _print_notes(decision)
    if not decision.already:
        entry = decision.entry
        click.echo(
            f"champion of {name}: version {entry.version_from or '–'} → {entry.version_to} (entry {entry.number})"
        )


@command.command()
@click.argument("name")
@AS_JSON
def history(name: str, as_json: bool) -> None:
    """Every attempt to move an alias: who, when, why, from, to, with what verdict."""
    from heimdall.registry.promote import history as read_history
    from heimdall.registry.publish import COLUMNS, row
    from heimdall.settings import Settings

    entries = read_history(name, Settings())
    if as_json:
        click.echo(json.dumps([entry.model_dump(mode="json") for entry in entries], indent=1))
    elif not entries:
        click.echo(f"No alias of {name} has been moved yet.")
    else:
        print_table(f"{name}: promotions, latest last", COLUMNS, [row(entry) for entry in entries])


@command.command()
@click.argument("uri")
@click.option("--output", "-o", required=True, type=click.Path(path_type=Path), help="Folder to write; must not exist.")
def export(uri: str, output: Path) -> None:
    """Copy a model (models:/NAME@champion) into a folder: ONNX, weights, manifest, card; usable without any server."""
    from heimdall.registry.listing import export_model
    from heimdall.settings import Settings

    for path in export_model(uri, output, Settings()):
        click.echo(f"{path.stat().st_size:>12,}  {path.relative_to(output)}")


def _decision_json(decision: Decision) -> str:
    checks = decision.judgement.checks if decision.judgement else ()
    return json.dumps(
        {
            "verdict": decision.entry.verdict,
            "moved": decision.entry.moved,
            "already": decision.already,
            "notes": decision.notes,
            "entry": decision.entry.model_dump(mode="json"),
            "checks": [vars(check) for check in checks],
        },
        indent=1,
    )


def _print_decision(name: str, decision: Decision) -> None:
    from heimdall.registry.publish import describe

    entry = decision.entry
    if decision.judgement is not None:
        rows = [
            (
                check.name,
                describe(check.challenger),
                describe(check.champion),
                check.rule,
                "pass" if check.passed else "FAIL",
            )
            for check in decision.judgement.checks
        ]
        title = f"{name}: challenger version {entry.version_to}, champion {entry.version_from or '–'}"
        print_table(title, ("gate", "challenger", "champion", "rule", ""), rows, style=_colour)
        click.echo(f"Judged on {entry.data} (digest {entry.data_digest[:12]}…)")
    _print_notes(decision)
    if decision.already:
        return
    click.secho(entry.verdict, bold=True, fg="red" if decision.held else "green")
    for reason in entry.reasons:
        click.echo(f"  - {reason}")
    if entry.moved:
        number = f"entry {entry.number} of the ledger"
        click.echo(f"{entry.alias} of {name}: version {entry.version_from or '–'} → {entry.version_to} ({number})")


def _print_notes(decision: Decision) -> None:
    for note in decision.notes:
        click.echo(note)


def _colour(row: Sequence[str]) -> str:
    return "red" if row[-1] == "FAIL" else ""
