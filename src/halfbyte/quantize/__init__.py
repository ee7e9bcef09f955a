"""Making a model smaller: `recipe` says which format each tensor gets, one module a method does the packing."""

from halfbyte.quantize.rtn import quantize

__all__ = ["quantize"]
