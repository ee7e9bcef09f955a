"""`halfbyte tune`: find the fastest kernel sizes of this GPU for a model, and remember them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from halfbyte.cli import completion
from halfbyte.cli import options as opt
from halfbyte.cli.loading import FILES, NAMED, Chosen, takes_model
from halfbyte.cli.output import note, print_json
from halfbyte.errors import DeviceError, UsageError

if TYPE_CHECKING:
    from halfbyte.gpu.device.device import Device
    from halfbyte.gpu.tuning.store import Choices, Measured
    from halfbyte.options import RunOptions
    from halfbyte.report.subject import Subject

Synthetic = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Tune for the shapes of this model, without its weights.",
        autocompletion=completion.short_names,
        rich_help_panel="Model",
    ),
]
Where = Annotated[
    Literal["auto", "cpu", "gpu"],
    typer.Option("--device", metavar="auto|cpu|gpu", help="What to tune.", rich_help_panel="Model"),
]
Seconds = Annotated[float | None, typer.Option(metavar="S", min=1, help="About how long to search.", show_default="60")]
Short = Annotated[
    bool, typer.Option("--short", help="Only the largest products and attention, in at most five seconds.")
]
Show = Annotated[bool, typer.Option("--show", help="Show earlier results, without tuning.")]

CPU = "CPU kernels need no tuning. `halfbyte tune` is for GPUs."


@takes_model(NAMED, *FILES, "gpu", "weights", "kv_dtype", "activations", "batch_tokens")
def tune(
    *,
    chosen: Chosen,
    synthetic: Synthetic = None,
    device: Where = "auto",
    seconds: Seconds = None,
    short: Short = False,
    show: Show = False,
    json: opt.Json = False,
) -> None:
    """Find the fastest kernel sizes of this GPU for a model.

    Each candidate is checked against the reference, and kept only if it is faster by more than the noise of the
    measurement. The result is remembered.
    """
    from halfbyte.report import subject as subjects

    if synthetic is not None and (chosen.model, chosen.revision, chosen.offline) != (None, None, False):
        raise UsageError(
            "--synthetic cannot be combined with a stored model.", "Leave out --model, --revision and --offline."
        )
    if seconds is not None and (short or show):
        option = "--short" if short else "--show"
        raise UsageError(f"--seconds has no effect with {option}.", f"Leave out --seconds or {option}.")
    if short and show:
        raise UsageError("--short has no effect with --show.", "Leave out --short or --show.")
    if device == "cpu" and chosen.run.gpu is not None:
        raise UsageError("--gpu cannot be combined with --device cpu.", "Leave out one of the two.")
    if show and chosen.run.batch_tokens is not None:
        raise UsageError("--batch-tokens has no effect with --show.", "Leave out --batch-tokens or --show.")
    if synthetic is not None:
        subject = subjects.synthetic(synthetic, weights=chosen.run.weights)
    else:
        subject = subjects.stored(
            chosen.model, revision=chosen.revision, offline=chosen.offline, weights=chosen.run.weights
        )
    opened = None if device == "cpu" else _open(device, chosen.run.gpu)
    if opened is None:
        if json:
            print_json({"device": "cpu", "driver": None, "rows": [], "verdicts": []}, indent=2)
        note(CPU)
        return
    try:
        if not show:
            _measure(opened, subject, chosen.run, SECONDS if seconds is None else seconds, short)
        _show(opened, subject, chosen.run, json)
    finally:
        opened.close()


SECONDS = 60.0


def _open(device: str, gpu: int | None) -> Device | None:
    """The GPU to tune; None where none was asked for and there is no real one."""
    from halfbyte.gpu.device.device import open_device

    try:
        return open_device(gpu)
    except DeviceError:
        if device == "gpu" or gpu is not None:
            raise
        return None


def _measure(device: Device, subject: Subject, run: RunOptions, seconds: float, short: bool) -> None:
    from halfbyte.cli.progress import progress_bar
    from halfbyte.gpu.factory import FACTORY
    from halfbyte.gpu.tuning.store import Verdict
    from halfbyte.gpu.tuning.tune import SHORT_BUDGET_S, tune
    from halfbyte.report.tuning import verdict_line

    if not device.capabilities.timestamps:
        note(f"{device.name} has no timestamps: times are measured by the host's clock, and less precise.")
    began = time.perf_counter()
    budget = SHORT_BUDGET_S if short else seconds
    found = 0
    with progress_bar() as progress:
        progress(f"{subject.name}: preparing", 0, 100)
        for result in tune(
            device, subject.spec, subject.source.format, tokens=run.batch_tokens or FACTORY.batch_tokens,
            kv_dtype=run.kv_dtype, activations=run.activations or "int8", budget_s=budget, short=short,
        ):  # fmt: skip
            done = min(99, int(100 * (time.perf_counter() - began) / budget))
            if isinstance(result, Verdict):
                note(verdict_line(result))
            else:
                found += bool(result.sizes)
                progress(f"{result.phase}: {result.label}", done, 100)
    note(f"{subject.name}: faster sizes for {found} kernels, in {time.perf_counter() - began:.1f} s.")


def _show(device: Device, subject: Subject, run: RunOptions, json: bool) -> None:
    from halfbyte.columns import aligned
    from halfbyte.gpu.tuning.harness import DECODE
    from halfbyte.gpu.tuning.store import load_choices, model_key
    from halfbyte.report.limits import known_read_bandwidth
    from halfbyte.report.tuning import estimates, kernel_rows, limit_line, to_json, verdict_line

    choices = load_choices(device)
    key = model_key(subject.spec, subject.source.format, run.kv_dtype, run.activations or "int8")
    measured, verdicts = _of(choices, key), choices.verdicts.get(key, [])
    if json:
        print_json({"device": device.name, "driver": device.adapter.driver, **to_json(measured, verdicts)}, indent=2)
    elif not measured:
        note(f"{subject.name} has not been tuned on {device.name}: the default sizes are used.")
    else:
        print(f"{subject.name} on {device.name} ({device.adapter.driver})\n")
        print(aligned(kernel_rows(measured)))
        for line in [*estimates(measured), *map(verdict_line, verdicts)]:
            print(line)
        if rate := known_read_bandwidth(device.name, device.adapter.driver):
            about: dict[str, Any] = {"kv_dtype": run.kv_dtype, "short": key in choices.short, "read_bandwidth": rate}
            for verdict in (v for v in verdicts if v.phase == DECODE):
                print(limit_line(verdict, subject.spec, subject.source.format, **about))


def _of(choices: Choices, model: str) -> list[Measured]:
    return [measured for measured in choices.rows.values() if measured.model == model]
