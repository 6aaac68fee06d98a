"""The scheduler: a deterministic state machine that decides what runs, what moves and who waits.

Events go in with the time, actions come out (`../events.py`); there is no I/O and no clock of its own. The same code
serves requests behind `JaxExecutor` and is simulated. `scheduler.py` takes events in and asks, in this order:
`moves.py` what moves between the tiers, `admission.py` who may run, `steps.py` what computes next; the last two find
what is cached in `prefixes.py`, and `copies.py` copies KV blocks to ddr and back.
"""

from .scheduler import Scheduler

__all__ = ["Scheduler"]
