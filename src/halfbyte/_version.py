"""The version, which also says what a verdict or a record was made with."""

__version__ = "0.1.0"
