"""Clinical arithmetic in plain NumPy: formulas with their sources, no models, no files."""
