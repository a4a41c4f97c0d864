"""Ray Train: one loop for every task."""
