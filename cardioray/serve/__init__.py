"""Bundles behind HTTP: Ray Serve applications, one a task."""
