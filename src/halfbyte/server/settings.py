"""What a server is told when it starts, apart from its models."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from math import isfinite

from halfbyte.errors import UsageError

KIB, MIB = 1 << 10, 1 << 20
AGE = "x-halfbyte-age"
"""The header in which a front tells how many seconds ago a request came."""


@dataclass(frozen=True)
class Settings:
    """How a server listens, and what it lends to each request.

    Attributes:
        host, port: Where it listens; port 0 takes a free one.
        api_key: What requests must bring as `Authorization: Bearer KEY` or `x-api-key`; None for nothing.
        insecure: Listen beyond this machine without a key.
        max_concurrent: Requests that are answered at once, over all models.
        max_queue: Requests that wait for that; further ones are refused with 429.
        timeout_s: Seconds that a request may take, from its first byte; what the model wrote by then is its answer.
        body_timeout_s: Seconds in which a request's head, and then its body, must have arrived.
        heartbeat_s: Seconds of silence after which a stream sends a comment, so that nobody on the way gives up.
        grace_s: Seconds that answers under way have after SIGTERM.
        max_body: Bytes of a request's body.
        max_depth: Levels of lists and objects in it.
        max_prompts: Prompts in one request.
        max_answers: Answers that one request may ask for, to all its prompts.
        log_prompts: Whether the log holds what was asked, and errors in full.
        behind: Whether requests come through a front of ours, which says for whom and since when (`AGE`), and tells
            itself of those that it asks of its own accord.

    Raises:
        UsageError: A value is out of range, or the host is not of this machine and there is no key.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    api_key: str | None = None
    insecure: bool = False
    max_concurrent: int = 32
    max_queue: int = 128
    timeout_s: float = 600.0
    body_timeout_s: float = 30.0
    heartbeat_s: float = 5.0
    grace_s: float = 15.0
    max_body: int = 16 * MIB
    max_depth: int = 64
    max_prompts: int = 256
    max_answers: int = 256
    log_prompts: bool = False
    behind: bool = False

    def __post_init__(self) -> None:
        for name, least in (("max_concurrent", 1), ("max_queue", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} must be at least {least} (got {getattr(self, name)}).", "Try 32.")
        for name in ("timeout_s", "body_timeout_s", "heartbeat_s"):
            if not (isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise UsageError(f"{name} must be a number above 0 (got {getattr(self, name)}).", "Give seconds.")
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable() and self.api_key):
            raise UsageError("the API key is empty or has characters that no header can hold.", "Use ASCII letters.")
        if not (self.is_local or self.api_key or self.insecure):
            raise UsageError(
                f"whoever reaches {self.host} could use the server: there is no API key.",
                "Give one with --api-key or HALFBYTE_API_KEY, or say --insecure.",
            )

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
