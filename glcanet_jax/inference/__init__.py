"""From variables to predictions: the walk over scenes of any size, and its scores."""
