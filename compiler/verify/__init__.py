"""Verifiers: each plan checked against its definition, slowly and obviously, with no code shared with its planner."""
