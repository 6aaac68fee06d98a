"""Traces replayed on a machine that need not be there: the scheduler that serves, in simulated time.

`machine.py` (and `rack.py`, of a plan) says which models there are and what their steps cost (`costs.py`), `replay.py`
plays arrivals through `../simulator.py` and watches, `report.py` makes the figures, `timeline.py` the picture.
"""
