"""Synthetic studies whose truth is known by construction."""
