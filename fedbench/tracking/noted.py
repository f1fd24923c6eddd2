"""What must stand in the files of a finished run: somebody else may have written them, and reports reckon with it.

Types are strict, and unknown keys are let be: a later version may note more.
"""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

# Of the files of a run directory. 1, which none tells: before summaries vouched for the other files; 2: with lists
# of clients in every line of rounds.jsonl; 3: with clients.arrow.
FORMAT = 3
LARGEST = 1e27  # that a figure may be, in base units: a hundred million times the largest training run
Figure = Annotated[float, Field(ge=0, le=LARGEST, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=10**9)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Noted(BaseModel):
    """A mapping in which some keys have a type."""

    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())


class Named(Noted):
    """A plugin, or a section with a name."""

    name: str


class NotedFederation(Noted):
    """Clients and rounds."""

    rounds: Annotated[int, Field(ge=0, le=10**9)]
    num_clients: Count
    local_epochs: Count
    participants: Count | None


class NotedOptimizer(Noted):
    """What gives a step's learning rate."""

    base_lr: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    batch_size: Annotated[int, Field(ge=2, le=10**9)]


class NotedTuning(Noted):
    """How settings were found."""

    trials: Count


class NotedConfig(Noted):
    """The configuration of a run, as far as a report reads it."""

    seed: Seed
    strategy: Named
    ssl: Named
    encoder: Named
    data: Named
    augmentation: Named
    federation: NotedFederation
    optimizer: NotedOptimizer
    numerics: str | None = None
    tracking: dict[str, Any] = {}
    evaluation: dict[str, Any] = {}
    tuning: NotedTuning | None = None


class NotedManifest(Noted):
    """manifest.json."""

    format: Annotated[int, Field(ge=1, le=FORMAT)] = 1
    cell_hash: str
    data_hash: str
    device: str
    started: str
    sources: dict[str, str]
    config: NotedConfig
    commit: str | None = None
    dirty: bool | None = None
    fedbench: str | None = None
    accelerator: str | None = None
    processor: str | None = None
    libraries: dict[str, str | None] = {}
    numerics: dict[str, Any] | None = None
    data: Named | None = None


SHARES = ("probe/", "personal/", "untrained/")  # accuracies and their like
SIGNED = "uniformity"


class NotedSummary(Noted):
    """summary.json; what is None was not noted by an earlier version.

    All numbers are at least 0, but for the uniformity of features; those of `SHARES` are from 0 to 1.
    """

    strategy: str
    ssl: str
    convention: str
    memory_source: str
    diverged: bool
    seconds: Figure
    flops: Figure = Field(alias="client/flops")
    peak_memory_bytes: Figure = Field(alias="client/peak_memory_bytes")
    download_bytes: Figure = Field(alias="client/download_bytes")
    upload_bytes: Figure = Field(alias="client/upload_bytes")
    local_steps: Figure | None = Field(default=None, alias="client/local_steps")
    all_flops: Figure | None = Field(default=None, alias="all_clients/flops")
    server_flops: Figure | None = Field(default=None, alias="server/flops")
    server_peak_memory_bytes: Figure | None = Field(default=None, alias="server/peak_memory_bytes")
    total_flops: Figure | None = Field(default=None, alias="total/flops")
    effective_rank: Figure | None = Field(default=None, alias="features/effective_rank")
    alignment: Figure | None = Field(default=None, alias="features/alignment")
    epsilon: Figure | None = Field(default=None, alias="privacy/epsilon")
    delta: Figure | None = Field(default=None, alias="privacy/delta")
    secure_aggregation_bytes: Figure | None = Field(default=None, alias="secure_aggregation/model_bytes")
    uniformity: float | None = Field(default=None, alias="features/uniformity")
    density: Figure | None = Field(default=None, alias="features/density")

    @model_validator(mode="before")
    @classmethod
    def _ranges(cls, content: Any) -> Any:
        for key, value in content.items() if isinstance(content, dict) else ():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if key.startswith(SHARES) and value is not None and not (is_number and 0 <= value <= 1):
                raise ValueError(f"{key}={str(value)[:100]!r} is no number from 0 to 1")
            if is_number and not key.endswith(SIGNED) and not 0 <= value <= LARGEST:
                raise ValueError(f"{key}={str(value)[:100]} is no number from 0 to {LARGEST:g}")
        return content


def fault(file: str, content: object, model: type[Noted]) -> str:
    """What is wrong with the content of `file`, in words: its first fault; "" if nothing is."""
    try:
        model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        given = "" if first["type"] == "missing" else f"={str(first['input'])[:100]!r}"
        return f"{file}: {'.'.join(map(str, first['loc']))}{given}: {first['msg']}"
    return ""
