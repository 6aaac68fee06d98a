"""Sharding rules: how each primitive can be computed on parts of its operands."""
