"""``heimdall``: the commands. Nothing heavy is imported until a command runs."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn, cast

import click

from heimdall.errors import HeimdallError

if TYPE_CHECKING:
    from pydantic import ValidationError

COMMANDS = {
    "train": "Train, track and register a model.",
    "tune": "Measure which batch size and how many workers train fastest here.",
    "simulate": "Write a data set drawn from one seed.",
    "predict": "Run a model on new recordings.",
    "reconstruct": "Reconstruct an object from diffraction patterns.",
    "runs": "List, show and compare training runs.",
    "models": "Register, promote, roll back and export models.",
    "sync": "Deliver what is still waiting in the journals.",
    "status": "Show what is waiting, and for whom.",
    "clean": "Remove journals that are delivered.",
    "doctor": "Check that every part can be reached and is set up.",
    "ui": "Open the MLflow UI on the runs.",
}
USAGE = 2
EXIT_OUTPUT = 74
EXIT_INTERRUPTED = 130
SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
PERMISSION = {errno.EACCES, errno.EPERM, errno.EROFS}
SPELLING = {
    "max_content_width": 100,
    "token_normalize_func": lambda token: token.replace("_", "-"),
    "help_option_names": ["-h", "--help"],
}


class Lazy(click.Group):
    """A group that imports a command only when it runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands, in the order people need them."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of one command."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"heimdall.commands.{cmd_name}").command
        command.context_settings = {**SPELLING, **command.context_settings}
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=Lazy, context_settings=SPELLING)
@click.option("--debug", is_flag=True, help="Show the traceback of an error; may follow any command.")
@click.version_option(package_name="heimdall-training")
def cli(debug: bool) -> None:
    """Train models, keep every number, let none into production without proof."""
    if debug:
        os.environ["HEIMDALL_DEBUG"] = "1"


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and end the process with its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given or os.environ.get("HEIMDALL_DEBUG", "") not in {"", "0"}
    given = [word for word in given if word != "--debug"]
    if debug:
        os.environ["HEIMDALL_DEBUG"] = "1"
    sys.exit(_run(given, debug=debug))


def _run(arguments: list[str], *, debug: bool) -> int:
    try:
        result: Any = cli.main(arguments, prog_name="heimdall", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except HeimdallError as error:
        return _report(error, str(error), error.exit_code, debug=debug)
    except BrokenPipeError:
        # whoever read our output has gone, as `heimdall … | head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OUTPUT
    except Exception as error:  # noqa: BLE001 - the last wall: people get a sentence, --debug the traceback
        if isinstance(error, OSError) and error.errno is not None:
            return _report(error, _output_sentence(error), EXIT_OUTPUT, debug=debug)
        name = type(error).__name__
        if name == "ValidationError" and getattr(error, "title", "") == "Settings":
            from heimdall.training.options import settings_sentence

            return _report(error, settings_sentence(cast("ValidationError", error)), USAGE, debug=debug)
        sentence = f"Something went wrong that heimdall did not foresee ({name}: {error}). Add --debug to see where."
        return _report(error, sentence, 1, debug=debug)
    return result if isinstance(result, int) else 0


def _output_sentence(error: OSError) -> str:
    place = f" at {error.filename}" if error.filename else ""
    if error.errno in SPACE:
        return f"There is no space left{place}. Free some, or name another folder with --output-dir."
    if error.errno in PERMISSION:
        return f"Writing is not permitted{place}. Change its permissions, or name another folder with --output-dir."
    return f"Reading or writing failed{place}: {error.strerror}."


def _report(error: BaseException, sentence: str, code: int, *, debug: bool) -> int:
    from heimdall.logs import redact

    if debug:
        import traceback

        click.echo(redact("".join(traceback.format_exception(error))), err=True)
    click.echo(f"heimdall: {redact(sentence)}", err=True)
    return code


if __name__ == "__main__":
    main()
