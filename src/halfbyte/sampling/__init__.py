"""How the next token is chosen: the settings, the random numbers, and the host's way of doing it."""

from halfbyte.sampling.params import SamplingParams
from halfbyte.sampling.sampler import Sampled, Sampler

__all__ = ["Sampled", "Sampler", "SamplingParams"]
