"""The application: which commands there are, and the options of `halfbyte` itself."""

from __future__ import annotations

from typing import Annotated

import typer

from halfbyte.cli.bench import app as bench
from halfbyte.cli.chat import chat
from halfbyte.cli.command import Command, Group, show_tracebacks
from halfbyte.cli.config import app as config
from halfbyte.cli.doctor import doctor
from halfbyte.cli.eval import app as eval_app
from halfbyte.cli.exit_codes import table
from halfbyte.cli.export import export
from halfbyte.cli.models import COMMANDS as MODEL_COMMANDS
from halfbyte.cli.models import app as models
from halfbyte.cli.plan import plan
from halfbyte.cli.profile import profile
from halfbyte.cli.quantize import quantize
from halfbyte.cli.run import run
from halfbyte.cli.serve import serve
from halfbyte.cli.tune import tune

app = typer.Typer(
    cls=Group,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]},
)
app.command(cls=Command)(run)
app.command(cls=Command)(chat)
app.command(cls=Command)(serve)
app.command(cls=Command)(plan)
app.command(cls=Command)(profile)
app.command(cls=Command)(tune)
app.command(cls=Command)(quantize)
app.command(cls=Command)(export)
app.command(cls=Command)(doctor)
for _name, _command in MODEL_COMMANDS.items():
    app.command(_name, cls=Command)(_command)
app.add_typer(bench, name="bench")
app.add_typer(eval_app, name="eval")
app.add_typer(config, name="config")
app.add_typer(models, name="models", hidden=True)


def _show_version(wanted: bool) -> None:
    if wanted:
        from halfbyte._version import __version__

        typer.echo(f"halfbyte {__version__}")
        raise typer.Exit


HELP = f"""Run 4-bit language models on this machine.

`halfbyte run "How do I extract a tar archive?"` answers with a small model that comes with the package.
`halfbyte help COMMAND` explains a command.

\b
Exit codes:
{table()}
"""


@app.callback(help=HELP)
def halfbyte(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", help="Show the traceback of an error.", callback=show_tracebacks, expose_value=False),
    ] = False,
) -> None:
    """The options of `halfbyte` itself; what they do is done in their callbacks."""
