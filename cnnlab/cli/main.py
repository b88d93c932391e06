"""Run the `cnnlab` command: parse, call one function, print. Heavy imports wait until a job starts."""

from __future__ import annotations

import gc
import sys
import traceback
from collections.abc import Iterable

import click

from cnnlab.cli import model_commands, store_commands, training_commands
from cnnlab.cli.library_errors import sentence
from cnnlab.errors import LabError, first_line, masked
from cnnlab.utils.screen import output_failure, set_up_streams
from cnnlab.utils.text import escape_control_characters

PRINTING = ("models", "predict", "cache")  # commands whose output is all that they do

NO_BREAK = "\N{NON-BREAKING HYPHEN}"


class _WholeWords(click.HelpFormatter):
    """Break lines of help texts at spaces only: `--fine-tune` and `one-cycle` are not divided at their hyphens."""

    def write_text(self, text: str) -> None:
        super().write_text(text.replace("-", NO_BREAK))

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        kept = [(term, text.replace("-", NO_BREAK)) for term, text in rows]
        super().write_dl(kept, min(col_max, self.width // 3), col_spacing)  # else long words have no room at 60 columns

    def getvalue(self) -> str:
        return super().getvalue().replace(NO_BREAK, "-")


class _Context(click.Context):
    formatter_class = _WholeWords


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="cnnlab")
def cli() -> None:
    """Train, compare and use image classifiers, with every run tracked by MLflow."""


cli.context_class = _Context
for _command in (*training_commands.COMMANDS, *model_commands.COMMANDS, *store_commands.COMMANDS):
    _command.context_class = _Context
    _command.short_help = (_command.help or "").split("\n\n")[0]  # click would cut it after 45 characters
    _help = "Show the traceback of an error."
    _command.params.append(
        click.Option(["--debug"], is_flag=True, expose_value=False, help=_help)  # `main` looks for it
    )
    cli.add_command(_command)


def main() -> None:
    """Run the command and exit: an error that a user can cause is one sentence on standard error."""
    debug = "--debug" in sys.argv
    set_up_streams()
    try:
        cli(prog_name="cnnlab", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        status = error.exit_code
    except click.ClickException as error:
        del (getattr(error, "possibilities", None) or [])[
            1:
        ]  # of options that are like it the nearest, which is the first
        print(f"error: {escape_control_characters(error.format_message())} See 'cnnlab --help'.", file=sys.stderr)
        status = error.exit_code
    except LabError as error:
        if debug:
            print(masked(traceback.format_exc()), file=sys.stderr)
        print(f"error: {error}", file=sys.stderr)
        status = error.exit_code
    except (click.exceptions.Abort, KeyboardInterrupt):  # click makes an Abort of it inside a command
        print("interrupted", file=sys.stderr)
        status = 130
    except Exception as error:
        text = sentence(error)
        if text is None or debug:
            print(masked(traceback.format_exc()), file=sys.stderr)
        print(f"error: {escape_control_characters(text or masked(first_line(error)))}", file=sys.stderr)
        status = 1
    else:
        status = 0
        if (failure := output_failure()) and sys.argv[1] in PRINTING:
            print(f"error: {sentence(failure)}", file=sys.stderr)
            status = 1
    # The interpreter's last collection goes through all of TensorFlow's objects for two seconds, to no end.
    gc.freeze()
    sys.exit(status)
