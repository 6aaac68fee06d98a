"""Bundles for racks that are planned only: which models are hot together, what a switch costs, how many fit."""
