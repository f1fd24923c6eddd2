"""Shipped configurations: grids and presets."""
