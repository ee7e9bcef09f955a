"""The GPU through WebGPU: the only package that imports wgpu."""
