"""Mechanisms that combine with any strategy: one file each."""
