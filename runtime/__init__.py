"""The runtime: a bundle that answers, under a memory budget."""
