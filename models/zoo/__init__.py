"""Configurations of well-known models by name, as JSON files: shapes to plan with, no weights."""
