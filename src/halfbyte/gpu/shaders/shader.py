"""Composed kernels, each text once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from halfbyte.gpu.shaders import template
from halfbyte.gpu.shaders.capabilities import Capabilities
from halfbyte.gpu.shaders.template import Constants
from halfbyte.gpu.shaders.wgsl import Demands, demands


class DemandError(Exception):
    """A shader takes more than a device has."""

    def __init__(self, kernel: str, exceeded: Sequence[str], wanted: Demands) -> None:
        figures = " and ".join(f"{getattr(wanted, name):,} {name.replace('_', ' ')}" for name in exceeded)
        super().__init__(f"has not the {figures} that the kernel {kernel} takes")
        self.kernel = kernel


@dataclass(frozen=True)
class Shader:
    """One compute shader, whose entry point is `main`.

    Attributes:
        kernel: The kernel file that it was made from.
        code: WGSL. Its buffers are storage buffers of group 0.
    """

    kernel: str
    code: str

    @cached_property
    def accesses(self) -> dict[str, str]:
        """`read` or `read_write` by the name of each buffer, in the order of their binding numbers."""
        return {name: access for access, name in template.bindings(self.code)}

    @cached_property
    def demands(self) -> Demands:
        """What it takes of a device."""
        return demands(self.code)

    def check(self, capabilities: Capabilities) -> None:
        """See that a device has what it takes.

        Raises:
            DemandError: It has not.
        """
        if exceeded := self.demands.exceeded(capabilities):
            raise DemandError(self.kernel, exceeded, self.demands)


class ShaderSet:
    """Shaders by number, made when they are first asked for; equal ones are one."""

    def __init__(self) -> None:
        self.shaders: list[Shader] = []
        self._numbers: dict[Shader, int] = {}
        self._known: dict[tuple[str, frozenset[tuple[str, str]]], int] = {}

    def number(self, kernel: str, constants: Constants) -> int:
        """The number of the kernel file `kernel` with these constants."""
        key = (kernel, frozenset((name, repr(value)) for name, value in constants.items()))
        if key not in self._known:
            self._known[key] = self._add(Shader(kernel, template.compose(kernel, constants)))
        return self._known[key]

    def keep(self, count: int) -> None:
        """Forget all but the first `count` shaders."""
        del self.shaders[count:]
        self._numbers = {shader: number for shader, number in self._numbers.items() if number < count}
        self._known = {key: number for key, number in self._known.items() if number < count}

    def _add(self, shader: Shader) -> int:
        if shader not in self._numbers:
            self._numbers[shader] = len(self.shaders)
            self.shaders.append(shader)
        return self._numbers[shader]
