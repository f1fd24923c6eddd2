"""fedbench: a benchmark harness for federated self-supervised learning."""

__version__ = "0.1.0"
