"""`tuner verify`: does a published plan still do what its record says?"""

from __future__ import annotations

from pathlib import Path

import click

from tuner.cli.options import ModelName, gpu_option, json_option, registry_option


@click.command("verify")
@click.argument("record", metavar="RECORD")
@click.option(
    "--model",
    type=ModelName(),
    help="Where the model lies, for a record of a local folder.  [default: the record's]",
)
@click.option("--share", is_flag=True, help="Run beside other processes.")
@click.option(
    "--python",
    type=click.Path(exists=True, dir_okay=False, executable=True, path_type=Path),
    help="Interpreter to measure with, such as the app's own.  [default: this one]",
)
@gpu_option()
@json_option()
@registry_option()
def command(
    record: str,
    model: str | None,
    share: bool,
    python: Path | None,
    gpu: str | None,
    as_json: bool,
    registry_url: str | None,
) -> int:
    """Run RECORD's plan and its baseline again, and say whether latency, memory and pictures still
    hold. Exit code 1 where they do not, or where others at work on the device leave it open.

    In the environment it was proved in, the result is kept beside the record: `get-plan` says so
    of one that drifted, prefers others, and asks for it to be tuned again.
    """
    from tuner.cli.verifier import VerifyOptions, verify

    return verify(VerifyOptions(record, model, share, python, gpu, as_json, registry_url))
