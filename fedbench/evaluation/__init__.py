"""Evaluation of a finished encoder; heads are thrown away. Each figure carries the name of its protocol."""

from fedbench.evaluation.features import extract_features
from fedbench.evaluation.linear import linear_probe

__all__ = ["extract_features", "linear_probe"]
