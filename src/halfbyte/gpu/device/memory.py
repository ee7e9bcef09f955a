"""How much memory a GPU has free, which WebGPU does not tell: Vulkan is asked, through its own library.

Structures and constants are those of the Vulkan specification: `vkGetPhysicalDeviceMemoryProperties2` with
`VK_EXT_memory_budget`, where a driver has it; else the whole heap counts as free.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from ctypes import POINTER, Structure, byref, c_char_p, c_uint32, c_uint64, c_void_p

_DEVICE_LOCAL = 1
_MOST_TYPES, _MOST_HEAPS = 32, 16
_API_1_1 = 1 << 22 | 1 << 12


class _Application(Structure):
    _fields_ = [
        ("type", c_uint32), ("next", c_void_p), ("name", c_char_p), ("version", c_uint32), ("engine", c_char_p),
        ("engine_version", c_uint32), ("api", c_uint32),
    ]  # fmt: skip


class _Instance(Structure):
    _fields_ = [
        ("type", c_uint32), ("next", c_void_p), ("flags", c_uint32), ("application", POINTER(_Application)),
        ("layer_count", c_uint32), ("layers", c_void_p), ("extension_count", c_uint32), ("extensions", c_void_p),
    ]  # fmt: skip


class _Properties(Structure):
    _fields_ = [
        ("api", c_uint32), ("driver", c_uint32), ("vendor", c_uint32), ("device", c_uint32), ("rest", c_uint32 * 1020)
    ]  # fmt: skip


class _Heap(Structure):
    _fields_ = [("size", c_uint64), ("flags", c_uint32)]


class _Memory(Structure):
    _fields_ = [
        ("type", c_uint32), ("next", c_void_p), ("type_count", c_uint32), ("types", c_uint32 * (2 * _MOST_TYPES)),
        ("heap_count", c_uint32), ("heaps", _Heap * _MOST_HEAPS),
    ]  # fmt: skip


class _Budget(Structure):
    _fields_ = [
        ("type", c_uint32), ("next", c_void_p), ("budget", c_uint64 * _MOST_HEAPS), ("usage", c_uint64 * _MOST_HEAPS)
    ]  # fmt: skip


def free_vulkan_memory(vendor: int, device: int) -> int | None:
    """Bytes of a GPU's own memory that this process can still take; None where Vulkan does not tell.

    Args:
        vendor, device: PCI ids; of several GPUs with the same, the one with the most room counts.
    """
    try:
        vulkan = ctypes.CDLL("vulkan-1.dll" if sys.platform == "win32" else "libvulkan.so.1")
    except OSError:
        return None
    application = _Application(0, None, None, 0, None, 0, _API_1_1)
    instance, wanted = c_void_p(), _Instance(1, None, 0, ctypes.pointer(application), 0, None, 0, None)
    if vulkan.vkCreateInstance(byref(wanted), None, byref(instance)):
        return None
    try:
        return max(_rooms(vulkan, instance, (vendor, device)), default=None)
    finally:
        vulkan.vkDestroyInstance(instance, None)


def _rooms(vulkan: ctypes.CDLL, instance: c_void_p, ids: tuple[int, int]) -> Iterator[int]:
    count = c_uint32()
    vulkan.vkEnumeratePhysicalDevices(instance, byref(count), None)
    found = (c_void_p * count.value)()
    vulkan.vkEnumeratePhysicalDevices(instance, byref(count), found)
    for handle in map(c_void_p, found):
        properties = _Properties()
        vulkan.vkGetPhysicalDeviceProperties(handle, byref(properties))
        if (properties.vendor, properties.device) == ids:
            yield _room(vulkan, handle)


def _room(vulkan: ctypes.CDLL, handle: c_void_p) -> int:
    """What is free of the largest heap that is the device's own."""
    budget = _Budget(1000237000)
    memory = _Memory(1000059006, ctypes.addressof(budget))
    vulkan.vkGetPhysicalDeviceMemoryProperties2(handle, byref(memory))
    own = [i for i in range(memory.heap_count) if memory.heaps[i].flags & _DEVICE_LOCAL]
    largest = max(own, key=lambda i: int(memory.heaps[i].size))
    if not budget.budget[largest]:
        return int(memory.heaps[largest].size)
    return max(0, int(budget.budget[largest]) - int(budget.usage[largest]))
