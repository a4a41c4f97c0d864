"""Scoring of a predictions table: figures with intervals, operating points, leaderboards."""
