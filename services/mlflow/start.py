"""Starts the MLflow server, after making sure that it may: right password, right schema, accounts in place.

fresh database   the server makes its tables
same schema      the server starts
older schema     refused, unless MLFLOW_DB_UPGRADE=true says that there is a backup: then it is upgraded first
newer schema     refused: an old server would damage it
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from sqlalchemy import create_engine, inspect, text
from sqlalchemy.engine import URL, Engine
from sqlalchemy.exc import OperationalError

CONNECT_PATIENCE_SECONDS = 60.0
MIN_PASSWORD_LENGTH = 12  # MLflow's own rule


class RefusalError(Exception):
    """A reason not to start, said in one sentence with its mend."""


def is_true(name: str) -> bool:
    value = os.environ.get(name, "").strip().lower()
    if value not in {"", "true", "false"}:
        raise RefusalError(f"{name} is {value!r}; it must be true or false.")
    return value == "true"


def database_url() -> URL:
    return URL.create(
        "postgresql+psycopg2",
        username=os.environ["POSTGRES_USER"],
        password=os.environ["POSTGRES_PASSWORD"],
        host=os.environ.get("POSTGRES_HOST", "postgres"),
        port=int(os.environ.get("POSTGRES_PORT", "5432")),
        database=os.environ["POSTGRES_DB"],
    )


def connect(url: URL) -> Engine:
    """An engine whose database has answered; waits while it starts, but not for a password to become right."""
    engine = create_engine(url, connect_args={"connect_timeout": 5})
    deadline = time.monotonic() + CONNECT_PATIENCE_SECONDS
    while True:
        try:
            with engine.connect() as connection:
                connection.execute(text("SELECT 1"))
                return engine
        except OperationalError as error:
            reason = str(error.orig).strip()
            if "password authentication failed" in reason:
                raise RefusalError(
                    "PostgreSQL refuses POSTGRES_PASSWORD of .env: the volume was made with another one. Put the old "
                    "password back into .env, or change the database's with: docker compose exec postgres "
                    f"psql -U {url.username} {url.database} -c '\\password'."
                ) from error
            if "does not exist" in reason:
                raise RefusalError(
                    f"PostgreSQL has no database {url.database!r} or role {url.username!r}: the volume was made with "
                    "other names. Put the old POSTGRES_USER and POSTGRES_DB back into .env."
                ) from error
            if time.monotonic() > deadline:
                raise RefusalError(
                    f"PostgreSQL at {url.host}:{url.port} does not answer: {reason.splitlines()[0]}. "
                    "See: docker compose logs postgres."
                ) from error
            time.sleep(1)


def check_schema(engine: Engine) -> None:
    """Let a server meet only a database that it knows.

    Raises:
        RefusalError: the database is newer, older without permission to upgrade, or not MLflow's.
    """
    from alembic.script import ScriptDirectory
    from mlflow.store.db.utils import _get_alembic_config, _upgrade_db

    tables = set(inspect(engine).get_table_names())
    if "alembic_version" not in tables:
        # Also after a first start that was cut off half-way: the server then goes on where it stopped.
        if tables and not tables & {"experiments", "alembic_version_auth"}:
            raise RefusalError(
                "The database has tables, and none of them is MLflow's: name an empty database in POSTGRES_DB."
            )
        print("The database is empty: MLflow makes its tables.", flush=True)
        return
    with engine.connect() as connection:
        current = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    scripts = ScriptDirectory.from_config(_get_alembic_config(""))
    wanted = scripts.get_current_head()
    if current == wanted:
        return
    if current not in {script.revision for script in scripts.walk_revisions()}:
        raise RefusalError(
            f"The database has schema {current}, which this MLflow does not know (it knows up to {wanted}): a newer "
            "server has upgraded it. Start that newer image again, or restore the backup made before the upgrade "
            "(scripts/restore)."
        )
    if not is_true("MLFLOW_DB_UPGRADE"):
        raise RefusalError(
            f"The database has the older schema {current}, this MLflow needs {wanted}, and nothing has been changed. "
            "Make a backup (scripts/backup), then upgrade once with: "
            "MLFLOW_DB_UPGRADE=true docker compose up --detach --wait mlflow."
        )
    print(f"Upgrading the database from schema {current} to {wanted}.", flush=True)
    _upgrade_db(engine)
    print("The database is upgraded.", flush=True)


def prepare_accounts(url: URL) -> None:
    """Create MLflow's administrator and the account that training uses, with the passwords of .env and its rights.

    Raises:
        RefusalError: a name or password is missing or too short.
    """
    accounts = {
        "MLFLOW_AUTH_ADMIN": (os.environ.get("MLFLOW_AUTH_ADMIN_USERNAME", ""), True),
        "MLFLOW_TRACKING": (os.environ.get("MLFLOW_TRACKING_USERNAME", ""), False),
    }
    for prefix, (name, _) in accounts.items():
        if not name:
            raise RefusalError(f"MLFLOW_AUTH=true needs {prefix}_USERNAME in .env.")
        if len(os.environ.get(f"{prefix}_PASSWORD", "")) < MIN_PASSWORD_LENGTH:
            raise RefusalError(
                f"MLFLOW_AUTH=true needs {prefix}_PASSWORD in .env, of {MIN_PASSWORD_LENGTH} characters or more."
            )
    if not os.environ.get("MLFLOW_FLASK_SERVER_SECRET_KEY"):
        raise RefusalError("MLFLOW_AUTH=true needs MLFLOW_FLASK_SERVER_SECRET_KEY in .env: any long random text.")

    config = Path("/tmp/basic-auth.ini")  # noqa: S108 - a tmpfs of this container alone
    config.touch(mode=0o600)
    config.write_text(
        "[mlflow]\ndefault_permission = READ\n"
        "auth_cache_ttl_seconds = 30\n"  # hashing a password costs more than most of a run's many requests
        f"database_uri = {url.render_as_string(hide_password=False).replace('%', '%%')}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n",
        encoding="utf-8",
    )
    os.environ["MLFLOW_AUTH_CONFIG_PATH"] = str(config)

    from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore

    store = SqlAlchemyStore()
    store.init_db(url.render_as_string(hide_password=False))
    for prefix, (name, is_admin) in accounts.items():
        password = os.environ[f"{prefix}_PASSWORD"]
        if not store.has_user(name):
            store.create_user(name, password, is_admin=is_admin)
        elif not store.authenticate_user(name, password):
            store.update_user(name, password=password)
    # Experiments and models from before accounts were switched on belong to nobody, and training must go on with them.
    # MANAGE, because a run that was made twice by a lost reply is deleted again.
    trainer = accounts["MLFLOW_TRACKING"][0]
    for kind in ("experiment", "registered_model"):
        store.grant_user_permission(trainer, kind, "*", "MANAGE")


def server_command() -> list[str]:
    """The server: artifacts go from client to S3 directly, so it proxies none."""
    hosts = ["mlflow", "mlflow:*", "localhost", "localhost:*", "127.0.0.1", "127.0.0.1:*"]
    hosts += [host for host in os.environ.get("MLFLOW_EXTRA_HOSTS", "").split(",") if host]
    command = ["mlflow", "server", "--host", "0.0.0.0", "--port", "5000"]
    command += ["--workers", os.environ.get("MLFLOW_WORKERS", "2"), "--allowed-hosts", ",".join(hosts)]
    command += ["--no-serve-artifacts", "--default-artifact-root", os.environ["MLFLOW_ARTIFACT_ROOT"]]
    command += ["--uvicorn-opts", "--no-access-log"]  # a health check every five seconds is no news
    if origins := os.environ.get("MLFLOW_CORS_ORIGINS", ""):
        command += ["--cors-allowed-origins", origins]
    if is_true("MLFLOW_AUTH"):
        command += ["--app-name", "basic-auth"]
    return command


def main() -> None:
    url = database_url()
    engine = connect(url)
    check_schema(engine)
    engine.dispose()
    if is_true("MLFLOW_AUTH"):
        prepare_accounts(url)
    # In the environment and not among the arguments, where every process listing would show the password.
    os.environ["MLFLOW_BACKEND_STORE_URI"] = url.render_as_string(hide_password=False)
    command = server_command()
    os.execvp(command[0], command)  # noqa: S606


if __name__ == "__main__":
    try:
        main()
    except RefusalError as refusal:
        sys.exit(f"MLflow does not start. {refusal}")
