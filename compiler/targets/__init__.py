"""Targets as data: one TOML file each, read by plait.compiler.target."""
