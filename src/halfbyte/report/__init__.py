"""Measuring: `bench` for how fast, `compare` for which is faster, `profile` for why; tables and pages to look at."""
