"""The ways to compute that not every device has, and which of them are in use.

A variant is switched off by its name where the self-test found it wrong on a device; the plain kernels always remain.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any

from halfbyte.gpu.shaders.capabilities import Capabilities
from halfbyte.gpu.shaders.family import Tuning

WIDE_STORAGE = 40_000
"""Bytes of workgroup memory that the wide tiles take."""
LONG_KEYS = 1536
"""Where sharing what is read begins to be worth more than having more workgroups."""
FAR_NBYTES = 3_000_000_000
"""Bytes of weights from which products ask early for what later ones read: from there an H200 is slower at them."""


@dataclass(frozen=True)
class Variant:
    """A way to compute that not every device has.

    Attributes:
        kernels: The kernel files that have it.
        offered: Whether a device can.
        spends: Whether kernels take more buffers or workgroup memory with it than without.
    """

    name: str
    kernels: tuple[str, ...]
    offered: Callable[[Capabilities], bool]
    spends: bool = False

    @property
    def field(self) -> str:
        """How `KernelConfig` calls it."""
        return self.name.replace("-", "_")


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("subgroups", ("gemv", "norm", "attend", "attend_tiled", "embed", "merge"), lambda c: c.subgroup >= 8),
        Variant("int8", ("gemv", "gemm", "norm", "embed", "merge"), lambda c: True),
        Variant("deferred-norm", ("gemv", "embed"), lambda c: True, spends=True),
        Variant("fused-attention", ("attend",), lambda c: True, spends=True),
        Variant("merged-attention", ("attend",), lambda c: c.coherent, spends=True),
        Variant("fused-rounding", ("gemv",), lambda c: c.subgroup >= 8 and c.invocations >= 1024, spends=True),
        Variant("fused-merge", ("attend", "gemv"), lambda c: c.subgroup >= 8 and c.invocations >= 1024, spends=True),
        Variant("read-ahead", ("gemv",), lambda c: True, spends=True),
        Variant("large-workgroups", ("gemv", "norm"), lambda c: c.invocations >= 1024),
        Variant("sliced-k", ("gemm",), lambda c: True),
        Variant("wide-tiles", ("gemm", "attend_tiled"), lambda c: c.workgroup_storage >= WIDE_STORAGE),
    )
}


@dataclass(frozen=True)
class KernelConfig:
    """The variants in use on a device.

    Attributes:
        subgroup: Lanes of a subgroup where they are used, else 0.
        invocations: Invocations of the largest workgroups that kernels may have.
        workgroup_storage: Bytes of workgroup memory.
        tuning: Sizes measured on the device.
        long_keys: Keys beyond which attention of one token takes the sizes for many.
        far_nbytes: Bytes of weights from which products of one token ask for the pages of later ones.
    """

    subgroup: int
    invocations: int
    workgroup_storage: int
    int8: bool
    deferred_norm: bool
    fused_attention: bool
    merged_attention: bool
    fused_rounding: bool
    fused_merge: bool
    read_ahead: bool
    large_workgroups: bool
    sliced_k: bool
    wide_tiles: bool
    tuning: Tuning = field(default_factory=Tuning)
    long_keys: int = LONG_KEYS
    far_nbytes: int = FAR_NBYTES


def choose(capabilities: Capabilities, *, off: Collection[str] = (), tuning: Tuning | None = None) -> KernelConfig:
    """Every variant the device offers but those switched off by name, in the sizes measured on it."""
    on = {name for name, variant in VARIANTS.items() if name not in off and variant.offered(capabilities)}
    return KernelConfig(
        capabilities.subgroup if "subgroups" in on else 0,
        min(capabilities.invocations, 1024 if "large-workgroups" in on else 256),
        capabilities.workgroup_storage,
        "int8" in on,
        {"int8", "deferred-norm"} <= on,
        "fused-attention" in on,
        "merged-attention" in on,
        {"subgroups", "int8", "fused-rounding", "large-workgroups"} <= on,
        {"fused-attention", "fused-merge"} <= on,
        "read-ahead" in on,
        "large-workgroups" in on,
        "sliced-k" in on,
        "wide-tiles" in on,
        tuning or Tuning(),
    )


def without_one(config: KernelConfig, kernel: str) -> KernelConfig | None:
    """The config without the last variant with which a kernel takes more than it must; None if none is in use."""
    for variant in reversed(VARIANTS.values()):
        if variant.spends and kernel in variant.kernels and getattr(config, variant.field):
            off: dict[str, Any] = {variant.field: False}
            return replace(config, **off)
    return None
