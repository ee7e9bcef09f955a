"""From token ids to token ids: sampling, paged caches, scheduling, and the engine that steps an executor."""

from halfbyte.plan.sampling import SamplingParams
from halfbyte.runtime.engine import AnswerStream, Engine, TokenOutput
from halfbyte.runtime.sequence import FinishReason, Sequence

__all__ = ["AnswerStream", "Engine", "FinishReason", "SamplingParams", "Sequence", "TokenOutput"]
