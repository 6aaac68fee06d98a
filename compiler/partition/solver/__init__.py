"""The solver of the sharding problem: presolve, then what its size allows, then a certificate."""

from .driver import solve
from .solution import Certificate, Infeasible, Message, Solution, Status, Step

__all__ = ["Certificate", "Infeasible", "Message", "Solution", "Status", "Step", "solve"]
