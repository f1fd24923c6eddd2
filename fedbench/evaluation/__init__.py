"""Evaluation of a finished encoder; heads are thrown away. Each figure carries the name of its protocol."""

from fedbench.evaluation.candidate import Candidate, untrained_encoder
from fedbench.evaluation.features import extract_features
from fedbench.evaluation.geometry import describe_features
from fedbench.evaluation.protocols import description, evaluate

__all__ = ["Candidate", "describe_features", "description", "evaluate", "extract_features", "untrained_encoder"]
