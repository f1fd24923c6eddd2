"""Metering: what a local step costs, in base units (FLOPs, bytes). Only a table printer divides."""
