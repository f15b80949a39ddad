"""`tuner completion`: the script that teaches a shell to complete commands and model names."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

WHERE = {
    "bash": "tuner completion bash > ~/.local/share/bash-completion/completions/tuner",
    "zsh": "tuner completion zsh > ~/.zfunc/_tuner",
    "fish": "tuner completion fish > ~/.config/fish/completions/tuner.fish",
}


@click.command("completion", epilog="\b\n" + "\n".join(WHERE.values()))
@click.argument("shell", type=click.Choice(list(WHERE)))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print the completion script of a SHELL. Write it where the shell looks for one:"""
    completion = get_completion_class(shell)
    if completion is None:
        raise click.UsageError(f"click knows no completion for {shell!r}")
    root = context.find_root().command
    click.echo(completion(root, {}, "tuner", "_TUNER_COMPLETE").source())
