"""Partitioning: which device holds and computes which part of every value, and what is communicated for it."""
