"""Binds lowered programs: refs become buffers of a device, shaders become pipelines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from halfbyte.gpu.device.device import Device
from halfbyte.gpu.lowering.context import LoweringContext
from halfbyte.gpu.lowering.program import Dispatch, Program, Ref, grid
from halfbyte.gpu.run.bound import BoundDispatch, BoundOutput, BoundProgram, Buffer
from halfbyte.gpu.run.pipelines import Pipelines
from halfbyte.gpu.run.weights import WeightStore
from halfbyte.gpu.shaders.shader import Shader
from halfbyte.gpu.shaders.template import compose

OWNED = ("scratch", "counters", "logits", "sampling")
"""Kinds of buffers that belong to the programs that are bound together."""


class Binder:
    """Binds the programs of one lowering over a model's weights, caches and state.

    Args:
        context: What the programs refer to.
        shared: The state, the caches and the constants.
    """

    def __init__(
        self,
        device: Device,
        context: LoweringContext,
        pipelines: Pipelines,
        weights: WeightStore,
        shared: Mapping[Ref, Buffer],
    ) -> None:
        self._device, self._context, self._pipelines, self._weights = device, context, pipelines, weights
        self._shared = shared
        self._owned: dict[Ref, Buffer] = {}

    def bind(self, program: Program) -> BoundProgram:
        """The program over this device's buffers; its kernels are being compiled from now on.

        Raises:
            DeviceError: There is no room for a buffer.
        """
        out = program.output
        output = BoundOutput(self.buffer(out.ref), out.width, out.stride) if out else None
        return BoundProgram(self._device, map(self._bound, program.dispatches), output, program.head)

    def _bound(self, dispatch: Dispatch) -> BoundDispatch:
        shader = self._context.shaders.shaders[dispatch.shader]
        return BoundDispatch(
            self._pipelines.get(shader),
            {name: self.buffer(ref) for name, ref in dispatch.bindings.items()},
            dispatch.grid,
            dispatch.label,
            dispatch.step,
            self._bound(dispatch.long) if dispatch.long else None,
            dispatch.long_keys,
        )

    def buffer(self, ref: Ref) -> Buffer:
        """The buffer that a ref names; made, or the weights uploaded, when it is first asked for."""
        if ref.kind == "weight":
            return self._weights.matrix(self._context.matrices[ref.name])[ref.piece][ref.binding]
        if ref.kind == "vector":
            return self._weights.vector(self._context.vectors[ref.name])
        if ref.kind not in OWNED:
            return self._shared[ref]
        if ref not in self._owned:
            self._owned[ref] = Buffer(self._device.buffer(self._context.buffers[ref.name], ref.kind))
        return self._owned[ref]


def kernel_program(
    device: Device, kernel: str, constants: Mapping[str, Any], buffers: Mapping[str, Buffer], groups: int
) -> BoundProgram:
    """A program of one kernel that belongs to no model, in so many workgroups."""
    shader = Shader(kernel, compose(kernel, constants))
    bound = {name: buffers[name] for name in shader.accesses}
    return BoundProgram(device, [BoundDispatch(Pipelines(device).get(shader), bound, grid(groups), kernel)])
