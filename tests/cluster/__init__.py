"""Tests of `halfbyte.cluster`, on a Ray cluster of this machine."""
