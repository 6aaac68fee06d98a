"""How much of a switch an agent notices: `plait bench switch`.

`agent.py` is the loop, `station.py` a runtime that it runs on, in a process of its own (`child.py`), `rival.py` the
servers that hold one model and are started anew. `run.py` takes turns between them, `intervals.py` says how sure the
figures are, and `report.py` compares them with the bars.
"""
