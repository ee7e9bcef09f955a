"""The oracle: every op in plain NumPy, float32, one line of mathematics a line of code where it can be."""
