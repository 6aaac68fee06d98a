"""The models: what they compute, where their weights are from."""
