"""How much a test does that can do more: a little each time, much under a profile of hypothesis that asks for it."""

from __future__ import annotations

from hypothesis import settings

THOUSAND = settings(max_examples=1000, deadline=None)
"""The profile `thousand`, which tests/conftest.py registers: `--hypothesis-profile=thousand`."""


def examples(usual: int, among: int = 1) -> int:
    """The examples of a test: `usual`, unless the profile in force asks for more than hypothesis does by itself.

    Args:
        among: Tests that share what the profile asks for.
    """
    asked = settings.default.max_examples
    return -(-asked // among) if asked > settings.get_profile("default").max_examples else usual
