"""``heimdall ui``: the MLflow UI on the configured store, on this machine alone."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import webbrowser
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from heimdall.settings import Settings

HOST = "127.0.0.1"
POLL_SECONDS = 0.2
START_SECONDS = 120.0


@click.command(name="ui")
@click.option(
    "--run", default="", metavar="RUN", help="Show this run: its id, or its key where it was started offline."
)
@click.option(
    "--port", default=5000, show_default=True, type=click.IntRange(0, 65535), help="Port; 0 takes a free one."
)
@click.option("--open/--no-open", "open_browser", default=True, help="Open the page in a browser, if there is one.")
def command(run: str, port: int, open_browser: bool) -> int:
    """Open the MLflow UI on the runs.

    Where a tracking server is configured, print its address; else start one on the store, until Ctrl-C.
    """
    from heimdall.training.options import settings as read_settings

    settings = read_settings()
    page = f"/#/runs/{_run_id(settings, run)}" if run else "/"
    if settings.tracking_uri.startswith(("http://", "https://")):
        click.echo(f"The MLflow UI is at {settings.tracking_place.rstrip('/')}{page}")
        return 0
    port = port or _free_port()
    url = f"http://{HOST}:{port}{page}"
    click.echo(f"MLflow UI on {settings.tracking_place}")
    server = subprocess.Popen(server_command(port), env={**os.environ, **server_environment(settings)})
    try:
        _wait_for(server, port)
        click.echo(f"Ready: {url}   (Ctrl-C ends it)")
        if open_browser and (os.environ.get("DISPLAY") or sys.platform == "darwin"):
            webbrowser.open(url)
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        server.terminate()
        server.wait()


def server_command(port: int) -> list[str]:
    """MLflow's server for this machine alone; where the store is says the environment, as a URI may hold a password."""
    return [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]


def server_environment(settings: Settings) -> dict[str, str]:
    """What the server needs to know, beside the environment there is."""
    found = {
        **settings.mlflow_environment(),
        "MLFLOW_BACKEND_STORE_URI": settings.tracking_uri,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "UVICORN_LOG_LEVEL": "warning",
    }
    if settings.artifact_root:
        found["MLFLOW_DEFAULT_ARTIFACT_ROOT"] = settings.artifact_root
    # the server must not take itself for a client of another server
    found.pop("MLFLOW_TRACKING_URI", None)
    return found


def _run_id(settings: Settings, run: str) -> str:
    from heimdall.errors import UsageError
    from heimdall.tracking.cursor import Cursor
    from heimdall.tracking.sweep import journal_of

    folder = journal_of(settings.journal_dir, run)
    found = Cursor.load(folder).run_id if folder else run
    if not found or found.startswith("hd-"):
        raise UsageError(f"The run {run} has not reached MLflow yet.", mend="Deliver it with: heimdall sync")
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _wait_for(server: subprocess.Popen[bytes], port: int) -> None:
    from heimdall.errors import ServiceError

    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise ServiceError(
                "The MLflow UI could not start; its message is above.", mend="Is the port taken? Try --port 0."
            )
        with socket.socket() as probe:
            if probe.connect_ex((HOST, port)) == 0:
                return
        time.sleep(POLL_SECONDS)
    raise ServiceError(f"The MLflow UI did not answer within {START_SECONDS:.0f} seconds.")
