"""What quantizing cost: perplexity, divergence from the original, right answers, and tables of all of it."""
