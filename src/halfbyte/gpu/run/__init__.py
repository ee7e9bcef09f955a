"""A lowered plan, a device and weights become an executor."""
