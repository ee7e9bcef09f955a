"""wgpu and nothing of plans: adapters, devices, buffers that the host reads, clocks, recorded passes."""
