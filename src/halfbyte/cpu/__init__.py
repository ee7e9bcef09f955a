"""The CPU executor: lowers a plan to a native program, which runs all of it on threads of its own."""

from halfbyte.cpu.executor import CpuExecutor

__all__ = ["CpuExecutor"]
