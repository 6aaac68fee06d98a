"""Reports of a plan that people read: tables, a page, and files for the tools that they know.

    read -> Inspection -> tables | page | perfetto | sambatune | model_explorer | dot
    sweep -> Sweep     -> table | sweep_page

An `Inspection` is a plan with its kernels, where they are, when they run, what they send, and a few other plans to hold
it against. Every number in a report is one of these, or is computed from them; insights say from which.
"""

from .insights import Insight, insights
from .inspection import Inspection, inspect_plan
from .sweep import Sweep, sweep

__all__ = ["Insight", "Inspection", "Sweep", "insights", "inspect_plan", "sweep"]
