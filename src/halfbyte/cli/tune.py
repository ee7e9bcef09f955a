"""`halfbyte tune`: find the kernel sizes that are fastest on this GPU for a model, and remember them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from halfbyte.cli import options as opt
from halfbyte.cli.loading import FILES, Chosen, takes_model
from halfbyte.cli.output import note, print_json
from halfbyte.errors import DeviceError, UsageError

if TYPE_CHECKING:
    from halfbyte.gpu.device.device import Device
    from halfbyte.gpu.tuning.store import Choices, Measured
    from halfbyte.options import RunOptions
    from halfbyte.report.subject import Subject

Synthetic = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Random weights in this model's shapes.", rich_help_panel="Model"),
]
Where = Annotated[
    Literal["auto", "cpu", "gpu"],
    typer.Option("--device", metavar="auto|cpu|gpu", help="What to tune.", rich_help_panel="Model"),
]
Seconds = Annotated[float, typer.Option(metavar="S", min=1, help="About how long to look.")]
Short = Annotated[
    bool, typer.Option("--short", help="Only the largest products and attention, in at most five seconds.")
]
Show = Annotated[bool, typer.Option("--show", help="Show what was gained before, measure nothing.")]

CPU = (
    "There is nothing to tune on the CPU: its kernels follow from the instruction set ({isa}), "
    "their tiles from its registers. bench --variants compares instruction sets."
)


@takes_model(*FILES, "gpu", "weights", "kv_dtype", "activations", "batch_tokens")
def tune(
    *,
    chosen: Chosen,
    synthetic: Synthetic = None,
    device: Where = "auto",
    seconds: Seconds = 60.0,
    short: Short = False,
    show: Show = False,
    json: opt.Json = False,
) -> None:
    """Find this GPU's fastest kernel sizes, and remember them.

    They are those for a model's shapes. Each is checked against the reference, and taken only if it is faster by more
    than the noise of the measurement.
    """
    from halfbyte.report import subject as subjects

    if synthetic is not None and (chosen.model, chosen.revision, chosen.offline) != (None, None, False):
        raise UsageError("--synthetic takes no weights from a model.", "Leave out --model, --revision and --offline.")
    if synthetic is not None:
        subject = subjects.synthetic(synthetic, weights=chosen.run.weights)
    else:
        subject = subjects.stored(
            chosen.model, revision=chosen.revision, offline=chosen.offline, weights=chosen.run.weights
        )
    opened = None if device == "cpu" else _open(device, chosen.run.gpu)
    if opened is None:
        from halfbyte.cpu.machine import describe

        note(CPU.format(isa=describe().isa))
        return
    try:
        if not show:
            _measure(opened, subject, chosen.run, seconds, short)
        _show(opened, subject, chosen.run, json)
    finally:
        opened.close()


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
        note(f"{device.name} has no timestamps: times are differences of wall-clock times, and less sure.")
    began = time.perf_counter()
    budget = SHORT_BUDGET_S if short else seconds
    found = 0
    with progress_bar() as progress:
        progress(f"{subject.name}: making ready", 0, 100)
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
    note(f"{subject.name}: {found} kernels have faster sizes; it took {time.perf_counter() - began:.1f} s.")


def _show(device: Device, subject: Subject, run: RunOptions, json: bool) -> None:
    from halfbyte.gpu.tuning.harness import DECODE
    from halfbyte.gpu.tuning.store import load_choices, model_key
    from halfbyte.report.limits import known_read_bandwidth
    from halfbyte.report.tables import aligned
    from halfbyte.report.tuning import estimates, kernel_rows, limit_line, to_json, verdict_line

    choices = load_choices(device)
    key = model_key(subject.spec, subject.source.format, run.kv_dtype, run.activations or "int8")
    measured, verdicts = _of(choices, key), choices.verdicts.get(key, [])
    if json:
        print_json({"device": device.name, "driver": device.adapter.driver, **to_json(measured, verdicts)}, indent=2)
    elif not measured:
        note(f"{subject.name} has not been tuned on {device.name}: the sizes that ship with Halfbyte are used.")
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
