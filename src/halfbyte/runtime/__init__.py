"""From token ids to token ids: sampling, paged caches, scheduling, and the engine that steps an executor."""

from halfbyte.runtime.engine import AnswerStream, Engine, TokenOutput
from halfbyte.runtime.sequence import FinishReason, Sequence
from halfbyte.sampling.params import SamplingParams

__all__ = ["AnswerStream", "Engine", "FinishReason", "SamplingParams", "Sequence", "TokenOutput"]
