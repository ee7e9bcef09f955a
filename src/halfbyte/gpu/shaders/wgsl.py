"""What a shader's text asks of a device, and the same text as the WebGPU standard has it."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass

from halfbyte.gpu.shaders.capabilities import Capabilities
from halfbyte.gpu.shaders.template import bindings

_EXTENSIONS = {"f16": re.compile(r"\bf16\b"), "subgroups": re.compile(r"\bsubgroup|\bquad[A-Z]")}
_COMMENT = re.compile(r"//.*")
_SIZE = re.compile(r"@workgroup_size\((\d+)\)")
_WORKGROUP = re.compile(r"var<workgroup> \w+: (?:array<(.+), (\d+)>|(.+));")


@dataclass(frozen=True)
class Demands:
    """What a shader needs at least; the fields are those of `Capabilities`."""

    storage_buffers: int
    invocations: int
    workgroup_storage: int

    def exceeded(self, capabilities: Capabilities) -> list[str]:
        """The names of the fields in which a device offers less."""
        return [name for name, wanted in asdict(self).items() if wanted > getattr(capabilities, name)]


def demands(code: str) -> Demands:
    """What a shader needs: bindings, invocations of a workgroup, bytes of workgroup memory.

    Raises:
        ValueError: It declares workgroup memory in a way that is not understood.
    """
    declared = _WORKGROUP.findall(code)
    if len(declared) != code.count("var<workgroup>"):
        raise ValueError("a declaration of workgroup memory was not understood")
    nbytes = (_nbytes(kind or single) * int(count or 1) for kind, count, single in declared)
    size = _SIZE.search(code)
    return Demands(len(bindings(code)), int(size[1]) if size else 1, sum(-(-each // 16) * 16 for each in nbytes))


def _nbytes(kind: str) -> int:
    """Bytes of a scalar of 32 bits, an atomic one, or a vector of those, as an array holds it."""
    return {"vec2": 8, "vec3": 16, "vec4": 16}.get(kind[:4], 4)


def standard(code: str) -> str:
    """The text for browsers: headed by a line for every extension in use. wgpu-native does not accept all of them."""
    said = _COMMENT.sub("", code)
    used = [name for name, sign in _EXTENSIONS.items() if sign.search(said)]
    return "".join(f"enable {name};\n" for name in used) + code
