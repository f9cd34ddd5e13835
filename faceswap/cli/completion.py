"""`faceswap completion`: what a shell needs to complete commands, options and files."""

from __future__ import annotations

import click

SHELLS = ("bash", "zsh", "fish")


@click.command(
    epilog="""\b
To have it in every new shell:
  bash   faceswap completion bash > ~/.local/share/bash-completion/completions/faceswap
  zsh    faceswap completion zsh > ~/.zfunc/_faceswap      (with fpath+=~/.zfunc before compinit in ~/.zshrc)
  fish   faceswap completion fish > ~/.config/fish/completions/faceswap.fish
"""
)
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> int:
    """Print the completion script for a shell."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    root = context.find_root()
    click.echo(kind(root.command, {}, "faceswap", "_FACESWAP_COMPLETE").source())
    return 0


COMMANDS = (completion,)
