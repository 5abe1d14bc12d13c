"""``heimdall doctor``: check each service as a client would, one line each with the mend."""

from __future__ import annotations

import click

from heimdall.errors import ServiceError

SUMMARY = "Check that every part can be reached and is set up."


@click.command(name="doctor", help=SUMMARY, short_help=SUMMARY)
@click.option(
    "--bucket",
    "buckets",
    multiple=True,
    envvar="HEIMDALL_BUCKETS",
    metavar="NAME",
    help="Bucket that training uses; may be given again. [env: HEIMDALL_BUCKETS, separated by spaces]",
)
@click.option("--need-gpu", is_flag=True, help="Fail where no GPU can be used.")
def command(buckets: tuple[str, ...], need_gpu: bool) -> None:
    """Print one line a finding; raise where something that training needs is missing."""
    from heimdall.doctor.checks import examine_all
    from heimdall.settings import Settings

    failed = []
    for finding in examine_all(Settings(), buckets, need_gpu=need_gpu):
        click.echo(finding.line())
        if finding.status == "failed":
            failed.append(finding.name)
    if failed:
        raise ServiceError(f"Not ready: {', '.join(failed)}.", mend="The lines above say what to do.")
