"""Asks the GPU drivers, in a process of its own because a faulty driver can crash or hang whoever asks it.

    python -m halfbyte.gpu.checks.apart        every adapter, as a JSON list
    python -m halfbyte.gpu.checks.apart N      what the self-test finds on adapter N: [variants off, seconds, reason]

`halfbyte.gpu.device.adapters` runs it and reads what it prints.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from typing import Any

from halfbyte.gpu.device.adapters import ask_drivers


def _list() -> list[dict[str, Any]]:
    return [asdict(replace(adapter, handle=None)) for adapter in ask_drivers()]


def _examine(gpu: int) -> tuple[tuple[str, ...], float, str]:
    from halfbyte.errors import DeviceError
    from halfbyte.gpu.checks.selftest import examined
    from halfbyte.gpu.device.device import open_device

    try:
        verdict = examined(open_device(gpu))
    except DeviceError as error:
        return (), 0.0, error.message
    return verdict.off or (), verdict.seconds, "" if verdict.off is not None else "it computes wrong results."


if __name__ == "__main__":
    print(json.dumps(_examine(int(sys.argv[1])) if len(sys.argv) > 1 else _list()))
