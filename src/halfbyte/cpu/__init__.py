"""The CPU executor: lowers a plan to a native program, which runs all of it on threads of its own."""

from importlib import import_module

from halfbyte.errors import DeviceError

try:
    import_module("halfbyte.cpu._native")
except ImportError as missing:
    raise DeviceError.not_compiled("the CPU", missing) from missing

from halfbyte.cpu.executor import CpuExecutor

__all__ = ["CpuExecutor"]
