"""The `cnnlab` command: parses, calls one function, prints. Heavy imports wait until a job starts."""

import gc
import sys

import click

from cnnlab.cli import training, upkeep, use
from cnnlab.errors import LabError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="cnnlab")
def cli():
    """Train, compare and use image classifiers, with every run tracked by MLflow."""


for _command in (*training.COMMANDS, *use.COMMANDS, *upkeep.COMMANDS):
    cli.add_command(_command)


def main():
    """Run the command; a `LabError` is one sentence on stderr and its exit status."""
    try:
        cli(prog_name="cnnlab", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        status = error.exit_code
    except click.ClickException as error:
        print(f"error: {error.format_message()} See 'cnnlab --help'.", file=sys.stderr)
        status = error.exit_code
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        status = error.exit_code
    except (click.exceptions.Abort, KeyboardInterrupt):  # click makes an Abort of it inside a command
        print("interrupted", file=sys.stderr)
        status = 130
    else:
        status = 0
    # The interpreter's last collection goes through all of TensorFlow's objects for two seconds, to no end.
    gc.freeze()
    sys.exit(status)
