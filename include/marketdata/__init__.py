"""Market-data pipelines: a run is a batch moving through rooms, and every step may be repeated at any moment."""
