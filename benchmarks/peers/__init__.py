"""Halfbyte beside other engines, on identical weights, in one run: `python -m benchmarks.peers`.

__main__.py      options, and the order of things
catalog.py       the peers: what each is installed from, reads, and how its files are made
environment.py   virtual environments of their own, under .cache/peers
models.py        one synthetic model in the files that each engine reads
engines/         one module an engine: load, logits, timed prefill, decode and batch
worker.py        an engine in a process of its own, answering requests a line each
remote.py        the other end of it: start, ask, stop the clock of whoever is not being measured
batched_bench.py llama.cpp's own program for batches, where one was built for a GPU
measure.py       agreement first, then interleaved repetitions
report.py        medians, bytes, shares; the table and the JSON lines
"""
