"""WGSL and what chooses among its variants: templates, capabilities, sizes. Never imports wgpu."""
