"""Configuration: pydantic models (`schema`), YAML files and dotted overrides (`load`)."""

from fedbench.config.load import (
    config_hash,
    config_names,
    load_config,
    parse_overrides,
    resolve_file,
    strategy_label,
)
from fedbench.config.schema import (
    AugmentationConfig,
    Config,
    DataConfig,
    EncoderConfig,
    FederationConfig,
    OptimizerConfig,
    PartitionConfig,
    ProbeConfig,
    SSLConfig,
    TrackingConfig,
)

__all__ = [
    "AugmentationConfig",
    "Config",
    "DataConfig",
    "EncoderConfig",
    "FederationConfig",
    "OptimizerConfig",
    "PartitionConfig",
    "ProbeConfig",
    "SSLConfig",
    "TrackingConfig",
    "config_hash",
    "config_names",
    "load_config",
    "parse_overrides",
    "resolve_file",
    "strategy_label",
]
