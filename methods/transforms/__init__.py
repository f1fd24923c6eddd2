"""Transforms of encoders: one file each."""
