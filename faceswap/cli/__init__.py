"""The command line: serve | swap | run | faces | jobs | … A command imports what it needs when it runs."""

from __future__ import annotations

from collections.abc import Sequence

import click

from .. import __version__
from . import api_commands, completion, service_commands, swap_commands
from .common import INTERRUPTED


class _Group(click.Group):
    """A group that lists its commands in the order in which people need them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="'faceswap COMMAND --help' tells more of each.",
)
@click.version_option(__version__, message="%(prog)s %(version)s")
def root() -> None:
    """Swap faces in videos and pictures."""


for _commands in (swap_commands, api_commands, service_commands, completion):
    for _command in _commands.COMMANDS:
        root.add_command(_command)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    try:
        return int(root.main(argv, "faceswap", standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
