"""Metering: what a local step costs, in base units (FLOPs, bytes). Only a table printer divides."""

from fedbench.metering.step import StepCost, trace_step

__all__ = ["StepCost", "trace_step"]
