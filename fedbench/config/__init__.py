"""Configuration: pydantic models (`schema`), YAML files (`load`), the words of a command line (`words`)."""

from fedbench.config.load import config_hash, load_config, resolve_file
from fedbench.config.schema import (
    AugmentationConfig,
    Config,
    DataConfig,
    EncoderConfig,
    EvaluationConfig,
    FederationConfig,
    OptimizerConfig,
    PartitionConfig,
    ProbeConfig,
    SSLConfig,
    TrackingConfig,
)
from fedbench.config.words import Words, parse_overrides, read_words
from fedbench.files import config_names

__all__ = [
    "AugmentationConfig",
    "Config",
    "DataConfig",
    "EncoderConfig",
    "EvaluationConfig",
    "FederationConfig",
    "OptimizerConfig",
    "PartitionConfig",
    "ProbeConfig",
    "SSLConfig",
    "TrackingConfig",
    "Words",
    "config_hash",
    "config_names",
    "load_config",
    "parse_overrides",
    "read_words",
    "resolve_file",
]
