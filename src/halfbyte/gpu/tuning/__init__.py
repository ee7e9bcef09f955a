"""Finds the sizes that kernels run fastest with on a device, and remembers them."""
