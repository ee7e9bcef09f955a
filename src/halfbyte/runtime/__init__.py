"""From token ids to token ids: paged caches, scheduling, the engine that steps an executor, the thread that owns it."""

from halfbyte.runtime.constraint import Constraint, Grammar
from halfbyte.runtime.engine import Engine, Failure, TokenOutput
from halfbyte.runtime.loop import AnswerStream, EngineLoop
from halfbyte.runtime.sequence import FinishReason, Sequence
from halfbyte.sampling import SamplingParams

__all__ = [
    "AnswerStream",
    "Constraint",
    "Engine",
    "EngineLoop",
    "Failure",
    "FinishReason",
    "Grammar",
    "SamplingParams",
    "Sequence",
    "TokenOutput",
]
