"""What each JAX primitive costs: FLOPs (`flops.py`), bytes (`traffic.py`), both for one equation (`cost.py`)."""
