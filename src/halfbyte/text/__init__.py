"""Text in, text out: token ids, chat templates, streaming."""

from halfbyte.text.stream import TextStream
from halfbyte.text.tokenizer import Tokenizer

__all__ = ["TextStream", "Tokenizer"]
