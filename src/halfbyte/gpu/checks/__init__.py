"""Whether the kernels are right here and how fast they could be: self-test, limits, bandwidth, traces."""
