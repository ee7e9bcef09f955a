"""Making a model smaller: `recipe` and `auto` choose formats, one module a method packs."""

from halfbyte.quantization.model import quantize
from halfbyte.quantization.options import METHODS, Options

__all__ = ["METHODS", "Options", "quantize"]
