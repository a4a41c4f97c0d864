"""Servers of the same network by other means; each is started as a process of its own."""
