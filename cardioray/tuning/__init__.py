"""Ray Tune: comparing backbones and searching settings."""
