"""Composed kernels, each text once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from halfbyte.gpu.shaders import template
from halfbyte.gpu.shaders.template import Constants


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

    def _add(self, shader: Shader) -> int:
        if shader not in self._numbers:
            self._numbers[shader] = len(self.shaders)
            self.shaders.append(shader)
        return self._numbers[shader]
