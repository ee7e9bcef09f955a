"""Keeps the process alive when a file that it has mapped is cut short."""

class Guard:
    """While it exists, reads of these bytes beyond the end of their file give zeros instead of ending the process."""

    def __init__(self, address: int, nbytes: int) -> None: ...
    def lost(self) -> bool:
        """Whether a read has found bytes missing."""
