"""A plan becomes data: dispatches over named buffers, for given capabilities. Never imports wgpu."""
