"""Making a model smaller: `recipe` and `auto` choose formats, one module a method packs."""

from halfbyte.quantize.model import METHODS, Options, quantize

__all__ = ["METHODS", "Options", "quantize"]
