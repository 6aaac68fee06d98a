"""Benchmarks: load on any OpenAI-compatible server, and the rates of the engine alone.

`arrivals.py` says when who is asked for how much, `load.py` asks it of `client.py` and keeps the outcomes, `summary.py`
makes figures of them. `engine.py` measures a bundle's runtime without a server. Nothing here is needed to serve.
"""
