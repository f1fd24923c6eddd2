"""Profiling: what a configuration will cost, from its plan and one traced step per stage, before any training."""

from fedbench.profiling.profile import Profile, StageProfile, profile

__all__ = ["Profile", "StageProfile", "profile"]
