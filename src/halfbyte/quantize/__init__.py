"""Making a model smaller: `recipe` and `auto` choose formats, one module a method packs."""

from halfbyte.quantize.model import quantize
from halfbyte.quantize.options import METHODS, Options

__all__ = ["METHODS", "Options", "quantize"]
