"""`solve`: an assignment, a bound and what checks it, from a sharding problem, in a given time.

Presolve comes first and often leaves nothing. If memory may not matter, the problem without it is solved exactly by
elimination, and that is the answer if it keeps the limit. Small cores go to HiGHS; large ones to dual ascent, whose
prices and messages give the bound and lead the search for a good assignment, and in parts to HiGHS again.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from ..problem import INFINITE_COST, Problem
from .best import Best, Progress
from .core import Core, flatten
from .dual import Dual, bound_of, messages_of
from .elimination import elimination_order, minimize
from .memory import ShortOfMemory, memory_rows
from .network import Conflict, Network
from .presolve import presolve
from .solution import Certificate, Infeasible, Solution, Status, Step

__all__ = ["solve"]

_PRESOLVE_SHARE = 0.4  # of the time limit
_MAX_RELAXED = 1 << 22  # entries of edges up to which memory is first left out
_MAX_PROGRAM = 150_000  # entries of a core's edges that HiGHS takes on whole
_RELAXATION_SHARE, _PROGRAM_SHARE = 0.4, 0.7  # of the time that is left, until which HiGHS has a core for itself
_LEAST_SECONDS = 2.0  # for which the search is worth loading, if there is an assignment already
_NUM_LARGEST = 5


def solve(problem: Problem, *, time_limit_seconds: float, progress: Progress | None = None) -> Solution:
    """Returns the best assignment found in time, with a bound.

    Args:
        problem: The problem.
        time_limit_seconds: In which it has to be back.
        progress: Is told the stage, the cost and the bound at times.
    """
    return _Run(problem, time_limit_seconds, progress or (lambda stage, cost, bound: None)).solve()


class _Run:
    """One call of `solve`."""

    def __init__(self, problem: Problem, time_limit_seconds: float, progress: Progress) -> None:
        self.begin = time.monotonic()
        self.deadline = self.begin + time_limit_seconds
        self.problem, self.progress = problem, progress
        self.is_integral = _is_integral(problem)

    def solve(self) -> Solution:
        """Returns the answer, whichever way it is found."""
        try:
            if _may_ignore_memory(self.problem) and (found := self._solve_without_memory()) is not None:
                return found
            return self._solve_reduced(*self._reduce(self.problem))
        except Conflict as conflict:
            return self._infeasible(_explain_conflict(self.problem, conflict))
        except ShortOfMemory as short:
            return self._infeasible(_explain_memory(self.problem, short))

    def _reduce(self, problem: Problem) -> tuple[Network, Core]:
        share = self.begin + _PRESOLVE_SHARE * (self.deadline - self.begin)
        network, rows = presolve(problem, share)
        return network, flatten(network, rows)

    def _solve_without_memory(self) -> Solution | None:
        """Returns the answer if leaving the limit out gives one that keeps it, and is quick."""
        network, core = self._reduce(replace(self.problem, usage_limit=None))
        order = elimination_order(core)
        if order is None:
            return None
        places, bound = minimize(core, order, core.costs)
        assignment = _decode(network, core, places)
        if not _keeps_limit(self.problem, assignment):
            return None
        steps = (*network.steps, *(Step("eliminate", int(core.nodes[node])) for node in order))
        return self._solution("optimal", assignment, bound, Certificate({}, steps, (), bound))

    def _solve_reduced(self, network: Network, core: Core) -> Solution:
        best = Best(core, is_integral=self.is_integral)
        if not len(core.nodes):
            best.offer(np.empty(0, np.int64))
            best.prove(core.constant)
            dual = Dual(np.zeros(len(core.room)), np.empty(0))
        else:
            dual = self._solve_small(core, best) if len(core.entries) <= _MAX_PROGRAM else None
            is_settled = best.is_optimal or best.is_infeasible
            if not is_settled and (best.places is None or self.deadline - time.monotonic() > _LEAST_SECONDS):
                dual = self._solve_large(core, best, dual)
        certificate = None if dual is None else _certificate(network, core, dual)
        if certificate is not None:
            best.prove(certificate.bound)  # its messages may have settled further than when they were last looked at
        if best.is_infeasible:
            return self._infeasible(_explain_search(self.problem), certificate)
        status: Status = "optimal" if best.is_optimal else "feasible" if best.places is not None else "unknown"
        assignment = () if best.places is None else _decode(network, core, best.places)
        return self._solution(status, assignment, best.bound, certificate)

    def _solve_small(self, core: Core, best: Best) -> Dual | None:
        from .program import Program

        program, left = Program(core), self.deadline - time.monotonic()
        relaxed, dual = program.relax(self.deadline - (1 - _RELAXATION_SHARE) * left)
        best.take(relaxed)
        if dual is not None:
            best.prove(bound_of(core, dual))
        if relaxed.status == "optimal" and not best.is_optimal:
            self.progress("branching", best.cost, best.bound)
            best.take(program.decide(self.deadline - (1 - _PROGRAM_SHARE) * left, best.tolerance))
        return dual

    def _solve_large(self, core: Core, best: Best, known: Dual | None) -> Dual | None:
        from .large import solve_large

        dual = solve_large(core, best, self.deadline - _reserve(self.deadline - self.begin), self.progress)
        return known if known is not None and bound_of(core, known) >= bound_of(core, dual) else dual

    def _solution(
        self, status: Status, assignment: tuple[int, ...], bound: float, certificate: Certificate | None
    ) -> Solution:
        cost = self.problem.cost(assignment) if assignment or not self.problem.num_nodes else float("inf")
        bound = cost if status == "optimal" else min(bound, cost)
        return Solution(status, assignment, cost, bound, time.monotonic() - self.begin, certificate)

    def _infeasible(self, why: Infeasible, certificate: Certificate | None = None) -> Solution:
        seconds = time.monotonic() - self.begin
        return Solution("infeasible", (), float("inf"), float("inf"), seconds, certificate, why)


def _reserve(time_limit_seconds: float) -> float:
    """Seconds that are kept back for what comes after the search."""
    return min(1.0 + 0.03 * time_limit_seconds, 0.2 * time_limit_seconds)


def _is_integral(problem: Problem) -> bool:
    """Whether all costs that can be paid are integers."""
    rows = [*problem.costs, *(edge.costs for edge in problem.edges)]
    return all((np.floor(row) == row).all() for row in rows)


def _may_ignore_memory(problem: Problem) -> bool:
    return problem.usage_limit is not None and sum(edge.costs.size for edge in problem.edges) <= _MAX_RELAXED


def _keeps_limit(problem: Problem, assignment: tuple[int, ...]) -> bool:
    used = np.array([usages[strategy] for usages, strategy in zip(problem.usages, assignment, strict=True)])
    try:
        memory_rows(used, used, problem)
    except ShortOfMemory:
        return False
    return True


def _decode(network: Network, core: Core, places: np.ndarray) -> tuple[int, ...]:
    numbers = core.numbers[core.first[:-1] + places].tolist()
    return tuple(network.decode(dict(zip(core.nodes.tolist(), numbers, strict=True))))


def _certificate(network: Network, core: Core, dual: Dual) -> Certificate:
    prices = {int(core.times[row]): float(dual.prices[row]) for row in np.flatnonzero(dual.prices)}
    return Certificate(prices, tuple(network.steps), messages_of(core, dual), bound_of(core, dual))


def _explain_conflict(problem: Problem, conflict: Conflict) -> Infeasible:
    nodes = (conflict.node, *conflict.neighbours[:_NUM_LARGEST])
    others = ", ".join(problem.name(node) for node in nodes[1:]) or "nothing else"
    text = (
        f"no strategy of {problem.name(conflict.node)} has a finite cost with those left of its neighbours ({others})"
    )
    return Infeasible("conflict", text, nodes=nodes)


def _explain_memory(problem: Problem, short: ShortOfMemory) -> Infeasible:
    limit = problem.usage_limit or 0.0
    least = [
        (node, float(usages[problem.costs[node] < INFINITE_COST].min(initial=usages.max())))
        for node, usages in enumerate(problem.usages)
        if problem.intervals[node][0] <= short.moment < problem.intervals[node][1]
    ]
    largest = tuple(sorted(least, key=lambda term: -term[1])[:_NUM_LARGEST])
    terms = ", ".join(f"{problem.name(node)} {size:,.0f}" for node, size in largest)
    text = (
        f"at time {short.moment} at least {short.demand:,.0f} is used, {limit:,.0f} allowed "
        f"(short {short.demand - limit:,.0f}); largest: {terms}; raise the limit"
    )
    return Infeasible("memory", text, short.moment, short.demand, limit, largest)


def _explain_search(problem: Problem) -> Infeasible:
    text = f"no combination of strategies keeps the limit of {problem.usage_limit or 0:,.0f} at all times; raise it"
    return Infeasible("search", text, limit=problem.usage_limit or 0.0)
