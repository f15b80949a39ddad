"""What `tuner verify` does: the device taken, a record's plan run again, the verdict printed."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from registry.client import open_registry
from registry.digest import short
from registry.errors import Interrupted
from registry.records import StoredRecord
from tuner.cli.opening import settings_for
from tuner.cli.output import print_json, print_rich
from tuner.cli.subjects import model_of
from tuner.cli.tuning import view_of
from tuner.model_spec import ModelSpec
from tuner.report.verifications import as_data, parts
from tuner.verifying import Verified, request_of, verify_record
from tuner.workplace import Device, Workplace, workplace

NOT_SHOWN = 1
"""Exit code where the plan does not hold, or it could not be told."""


@dataclass(frozen=True)
class VerifyOptions:
    """The options of `tuner verify` by their parameter names."""

    record: str
    model: str | None
    share: bool
    python: Path | None
    gpu: str | None
    as_json: bool
    registry_url: str | None


def verify(options: VerifyOptions) -> int:
    """Verify, print, and give the exit code. Raises the errors of `verify_record`, RecordNotFound
    and DeviceBusy."""
    settings = settings_for(options.registry_url)
    stored = open_registry(settings.registry, create=False, opening=settings.opening).record(
        options.record
    )
    spec = model_of(stored.record, options.model)
    device = Device(options.gpu, python=options.python, share=options.share)
    with workplace(settings, device, command=sys.argv) as place:
        found = _watched(place, stored, spec, options)
    if options.as_json:
        print_json(as_data(found))
    else:
        print_rich(*parts(found))
    return 0 if found.verification is not None and found.verification.holds else NOT_SHOWN


def _watched(
    place: Workplace, stored: StoredRecord, spec: ModelSpec, options: VerifyOptions
) -> Verified:
    request = request_of(stored.record, spec, share=options.share)
    view = view_of(place, request, plain=options.as_json or not sys.stderr.isatty())
    try:
        with view:
            return verify_record(place, stored, spec, view, share=options.share)
    except (KeyboardInterrupt, Interrupted) as stop:
        raise Interrupted(
            f"interrupted: nothing is said of record {short(stored.record.id)}"
        ) from stop
