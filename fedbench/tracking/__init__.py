"""Tracking: run directories (the record), what is read from them, progress, and their W&B mirror."""
