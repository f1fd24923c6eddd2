"""Every key of a run's configuration, with its unit and the source of its default.

[LW] is arXiv:2401.11647. Defaults of the training recipe are the paper's; defaults of the data and of
the encoder's size are the quick start's (8x8 digits), because that is what runs everywhere.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from fedbench.errors import shown
from fedbench.protocols import ProtocolName

SplitName = Literal["validation", "test"]
Probability = Annotated[float, Field(ge=0, le=1)]
# Upper limits are for slips of the keyboard: beyond them there is no answer in a person's time, or in memory.
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
Count = Annotated[PositiveInt, Field(le=1_000_000)]  # clients, images of a batch
CountOrNone = Annotated[NonNegativeInt, Field(le=1_000_000)]
Several = Annotated[int, Field(ge=2, le=1_000_000_000)]  # images of a data set
Batch = Annotated[int, Field(ge=2, le=1_000_000)]
Epochs = Annotated[PositiveInt, Field(le=100_000)]
Dimensions = Annotated[PositiveInt, Field(le=100_000)]
Rounds = Annotated[NonNegativeInt, Field(le=100_000)]
Blocks = Annotated[PositiveInt, Field(le=256)]
Processes = Annotated[PositiveInt, Field(le=4_096)]
MAX_SIZE = 4_096  # pixels of an image's side
ENCODER_KEYS = {"name", "image_size", "in_channels", "transforms", "init"}  # keys of every encoder
OF_SOME_ENCODERS = {"patch_size", "width", "depth", "heads"}  # keys that encoders share, each a part of them
# Encoders that had results when all keys were theirs: those keep their names by all of them, set or not.
WITH_ALL_KEYS = ("vit", "resnet18")
# A key that came after there were results: left out where it is not given, so that those keep their names.
LATER: Any = Field(default=None, exclude_if=lambda value: value is None)


class Section(BaseModel):
    """Frozen, and closed: a key that is not declared here is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("true and false are not numbers or names")
        return value


class SSLConfig(Section):
    """Self-supervised method and its heads. Further keys are the method's own, see `fedbench list ssl NAME`."""

    model_config = ConfigDict(extra="allow")

    name: str = "moco_v3"
    """SSL method: `fedbench list ssl` shows them; or package.module:Class, or a path ending in .py."""
    hidden_dim: Dimensions = 512
    """Width of both heads' hidden layers; [LW] Sec. 4.1."""
    output_dim: Dimensions = 256
    """Dimensions of a projection; [LW] Sec. 4.1."""
    temperature: PositiveFloat = 0.05
    """Temperature T of InfoNCE and NT-Xent ([LW] Eq. 2); BYOL has none."""
    momentum: Probability = 0.99
    """Momentum of the target branch ([LW] Sec. 4.1); SimCLR has none."""


class EncoderConfig(Section):
    """Encoder as stem + blocks + norm. Further keys are the encoder's own, see `fedbench list encoders NAME`."""

    model_config = ConfigDict(extra="allow")

    name: str = "vit"
    """Encoder: `fedbench list encoders` shows them; or package.module:Class, or a path ending in .py."""
    image_size: Annotated[int, Field(ge=2, le=MAX_SIZE)] = 8
    """Pixels; images of another size are resized once, when loaded."""
    patch_size: Annotated[PositiveInt, Field(le=MAX_SIZE)] = 2
    """Pixels, a divisor of `image_size`; of encoders that have it."""
    width: Dimensions = 64
    """Dimensions of a token, or channels; of encoders that have it."""
    depth: Blocks = 4
    """Blocks; of encoders that have it, the others know their own."""
    heads: Dimensions = 4
    """Attention heads, a divisor of `width`; of encoders that have it."""
    in_channels: Literal[1, 3] = 1
    """1: grey, 3: colour; images are converted when loaded."""
    transforms: Annotated[tuple[dict[str, Any], ...], Field(max_length=20)] | None = LATER
    """Changes of its layers, in their order: `fedbench list transforms` shows them."""
    init: str | None = LATER
    """Weights to start from: a run's folder, or a .safetensors file of a run, an export, timm or torchvision."""

    @field_validator("transforms", mode="before")
    @classmethod
    def _names_alone(cls, value: object) -> object:
        if isinstance(value, str | dict):
            value = [value]
        if isinstance(value, list | tuple):
            return [{"name": one} if isinstance(one, str) else one for one in value]
        return value

    @field_validator("transforms")
    @classmethod
    def _named(cls, value: tuple[dict[str, Any], ...] | None) -> tuple[dict[str, Any], ...] | None:
        if any(not isinstance(one.get("name"), str) for one in value or ()):
            raise ValueError("each needs a name: a list of names, or of {name: NAME, its keys}")
        return value or None

    @model_serializer(mode="wrap")
    def _without_others(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The keys of some encoders, where they are not set, are those of an encoder that has none of them."""
        tree: dict[str, Any] = whole(self)
        if self.name in WITH_ALL_KEYS:
            return {key: value for key, value in tree.items() if value is not None}
        return {key: value for key, value in tree.items() if key not in self.unset}

    @property
    def unset(self) -> set[str]:
        """Keys of some encoders that this configuration does not set."""
        return OF_SOME_ENCODERS - self.model_fields_set

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.in_channels, self.image_size, self.image_size


class PartitionConfig(Section):
    """How the pre-training pool is split over the clients."""

    name: Literal["iid", "dirichlet", "classes", "quantity", "groups"] = "iid"
    """How: evenly; by class (dirichlet, classes); by size (quantity); by a file (groups)."""
    beta: PositiveFloat = 0.5
    """Dirichlet's beta, small: uneven. Of dirichlet: each class over clients; of quantity: sizes over clients."""
    classes: Count | None = LATER
    """Of the partition `classes`: k, how many each client has."""
    file: str | None = LATER
    """Of the partition `groups`: a CSV file with the columns image and group; each group is a client."""
    min_size: Several = 2
    """Samples per client; BatchNorm and InfoNCE need two."""

    @property
    def words(self) -> str:
        """The name and how far it goes: `dirichlet 0.5`, `classes 2`."""
        degree = {"dirichlet": self.beta, "quantity": self.beta, "classes": self.classes}.get(self.name)
        return self.name if degree is None else f"{self.name} {degree:g}"

    @model_validator(mode="after")
    def _own_keys(self) -> "PartitionConfig":
        for name, key in (("classes", "classes"), ("groups", "file")):
            value = getattr(self, key)
            if (self.name == name) != (value is not None):
                raise ValueError(
                    f"name={self.name} with {key}={value}; allowed: name={name} with a value for {key}"
                )
        return self


class DataConfig(Section):
    """Source of the images. Labels are used by the probe and by partitions over labels only."""

    name: str = "digits"
    """Data set: `fedbench list datasets` shows them; or package.module:Class, or a path ending in .py."""
    path: str | None = None
    """Folder of the files, file of npz; null: data/NAME, where the set has published files."""
    download: bool = Field(default=False, exclude=True)
    """Whether files that are not there are downloaded."""
    size: Annotated[PositiveInt, Field(le=MAX_SIZE)] | None = LATER
    """Pixels; of a set that is published in several sizes; null: the nearest."""
    num_train: Several | None = None
    """Samples kept for pre-training and probe training; null: all."""
    labels: bool = Field(default=True, exclude_if=lambda value: value)
    """false: the images have no labels, folders are no classes."""
    skip_broken: bool = Field(default=False, exclude_if=lambda value: not value)
    """Whether images that cannot be read are left out, and counted; else they are an error."""
    partition: PartitionConfig = PartitionConfig()
    """Which client gets which images."""


class AugmentationConfig(Section):
    """The six operations of [LW] Sec. 4.1, applied to each of the two views."""

    name: Literal["batched", "lightly"] = "batched"
    """batched: on whole batches of tensors; lightly: its transform, image by image."""
    min_scale: Annotated[float, Field(gt=0, le=1)] = 0.08
    """Smallest crop, share of the image's area."""
    flip: Probability = 0.5
    """Probability of a horizontal flip."""
    jitter: Probability = 0.8
    """Probability of a change of colour."""
    jitter_strength: Annotated[float, Field(ge=0, le=5)] = 0.5
    """0.5: brightness, contrast 0.2, saturation 0.1, hue 0.05."""
    grayscale: Probability = 0.2
    """Probability of becoming grey."""
    blur: tuple[Probability, Probability] = (0.5, 0.5)
    """Probability for view 1 and for view 2."""
    solarize: tuple[Probability, Probability] = (0.0, 0.2)
    """Probability for view 1 and for view 2."""
    local_crops: Annotated[NonNegativeInt, Field(le=100)] = Field(default=0, exclude_if=lambda value: not value)
    """Small views of an image besides the two, for methods that take them (dino)."""
    local_size: Annotated[int, Field(ge=2, le=MAX_SIZE)] | None = LATER
    """Pixels of a small view; a multiple of a ViT's patch_size; null: half of `encoder.image_size`."""
    local_scale: tuple[Probability, Probability] | None = LATER
    """Smallest and largest crop of a small view, shares of the image's area; null: min_scale to 0.4."""

    @model_validator(mode="after")
    def _local(self) -> "AugmentationConfig":
        for key in ("local_size", "local_scale"):
            if getattr(self, key) is not None and not self.local_crops:
                raise ValueError(f"{key}={getattr(self, key)} with local_crops=0; allowed: with local_crops")
        if self.local_crops and self.name != "batched":
            raise ValueError(f"local_crops={self.local_crops} with name={self.name}; allowed: with name=batched")
        return self


class FederationConfig(Section):
    """Clients and rounds ([LW] Algorithm 1)."""

    num_clients: Count = 5
    """1: centralised training, one client has all the data."""
    participants: Count | None = None
    """Clients per round, drawn uniformly; null: all."""
    rounds: Rounds = 48
    """R, over all stages; 0: the untrained encoder."""
    rounds_per_stage: Annotated[tuple[Count, ...], Field(max_length=1_000)] | None = None
    """R_s, adding up to R; null: R / S."""
    local_epochs: Epochs = 2
    """E: epochs of a client's training in one round."""
    dropout_before: Probability = 0.0
    """Probability that a drawn client is lost before it is sent anything."""
    dropout_after: Probability = 0.0
    """Probability that it is lost after training, before its upload: its download is spent."""
    client_memory: Literal["kept", "none"] = "kept"
    """What a client holds after a round; none: the paper's worst case."""
    late_clients: CountOrNone = 0
    """How many join late: the last ones."""
    late_round: CountOrNone = 0
    """Round (0-based) from which they can be drawn."""
    timeout: Annotated[float, Field(gt=0, le=1_000_000)] | None = LATER
    """Seconds that a worker process has for a client, then it is killed and the client trained again; null: ten
    minutes, and 20 times what the visit's FLOPs took at the slowest before. No bit depends on it."""

    @model_validator(mode="after")
    def _schedule(self) -> "FederationConfig":
        stages = self.rounds_per_stage
        if stages is not None and sum(stages) != self.rounds:
            raise ValueError(
                f"rounds_per_stage={shown(list(stages))} adds up to {sum(stages)}, but rounds={self.rounds}; "
                "allowed: one number of rounds for each stage, adding up to rounds"
            )
        if self.late_clients > self.num_clients:
            raise ValueError(
                f"late_clients={self.late_clients} exceeds num_clients={self.num_clients}; "
                f"allowed: 0 to {self.num_clients}"
            )
        return self

    @model_validator(mode="after")
    def _participants(self) -> "FederationConfig":
        if self.participants is not None and self.participants > self.num_clients:
            raise ValueError(
                f"participants={self.participants} exceeds num_clients={self.num_clients}; "
                f"allowed: 1 to {self.num_clients}"
            )
        return self


class OptimizerConfig(Section):
    """Optimizer of a client's local training; learning rate = base_lr * batch_size / 256 ([LW] Sec. 4.1)."""

    name: Literal["adamw", "sgd", "lars"] = Field(default="adamw", exclude_if=lambda value: value == "adamw")
    """[LW]: adamw. sgd and lars have momentum; lars (arXiv:1708.03888) scales the step of each weight matrix."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.9, exclude_if=lambda value: value == 0.9)
    """Momentum of sgd and lars."""
    schedule: Literal["constant", "cosine", "cosine_per_stage"] = Field(
        default="constant", exclude_if=lambda value: value == "constant"
    )
    """Learning rate over the rounds, the server's too: a cosine over the run, or one over each stage."""
    base_lr: PositiveFloat = 1.5e-4
    """Learning rate at a batch of 256; a step's is base_lr * batch_size / 256."""
    batch_size: Batch = 64
    """Images per local step; [LW]: 512; ours: 64, because a digits client has 287."""
    weight_decay: NonNegativeFloat = 1e-5
    """Weight decay: decoupled in adamw, a part of the gradient in sgd and lars."""

    @model_validator(mode="after")
    def _momentum_of_adamw(self) -> "OptimizerConfig":
        if "momentum" in self.model_fields_set and self.name not in ("sgd", "lars"):
            raise ValueError(f"momentum={self.momentum} with name={self.name}; allowed: with sgd, lars")
        return self

    @property
    def lr(self) -> float:
        """Learning rate of a step."""
        return self.base_lr * self.batch_size / 256


class ProbeConfig(Section):
    """Classifier of `linear` and `few_label_*`, on frozen, standardised features: AdamW with cosine decay."""

    epochs: Epochs = 100
    """Passes over the labelled features."""
    batch_size: Count = 256
    """Features per step."""
    lr: PositiveFloat = 1e-1
    """Learning rate at the start; it decays as a cosine."""
    weight_decay: NonNegativeFloat = 0.0
    """Weight decay of AdamW."""


class KNNConfig(Section):
    """Nearest neighbours of the protocol `knn`; Wu et al., arXiv:1805.01978, Sec. 3.4."""

    k: Count = 200
    """Neighbours; fewer where a class has fewer labelled images on average."""
    temperature: PositiveFloat = 0.07
    """Temperature of the votes' weights."""


class FinetuneConfig(Section):
    """Training of encoder and classifier under the protocol `finetune` ([LW] Sec. 4.1)."""

    epochs: Epochs = 40
    """Passes over the labelled images."""
    warmup_epochs: Annotated[NonNegativeInt, Field(le=100_000)] = 10
    """First of the epochs, in which the learning rate rises linearly."""
    batch_size: Batch = 256
    """Images per step."""
    lr: PositiveFloat = 1e-3
    """Learning rate after the warm-up; it decays as a cosine."""
    weight_decay: NonNegativeFloat = 1e-5
    """Weight decay of AdamW."""
    num_ops: Annotated[PositiveInt, Field(le=1_000)] = 2
    """Operations of RandAugment for each image; [LW] names no number, torchvision's default."""
    magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    """Strength of RandAugment's operations, of 30; torchvision's default too."""

    @model_validator(mode="after")
    def _warmup(self) -> "FinetuneConfig":
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs={self.warmup_epochs} leaves nothing of epochs={self.epochs}; "
                f"allowed: 0 to {self.epochs - 1}"
            )
        return self


class EvaluationConfig(Section):
    """How encoders are judged, when, and on what. The linear classifier's settings are the section `probe`."""

    split: SplitName = Field(default="test", exclude_if=lambda value: value == "test")
    """What is scored. validation: a tenth of the training images, on which then nobody trains; for choosing
    settings (`tune`), so that the test images, which are not read, choose nothing."""
    protocols: Annotated[tuple[ProtocolName, ...], Field(min_length=1)] = ("linear",)
    """What is reported; the first one ranks."""
    every: CountOrNone = 0
    """Rounds from one evaluation to the next during training; 0: at the end only."""
    data: DataConfig | None = None
    """Another data set than the one of pre-training; null: the same."""
    knn: KNNConfig = KNNConfig()
    """Settings of the protocol knn."""
    finetune: FinetuneConfig = FinetuneConfig()
    """Settings of the protocol finetune."""

    @field_validator("protocols", mode="before")
    @classmethod
    def _list(cls, value: object) -> object:
        if isinstance(value, str):
            raise ValueError(f"a name alone; allowed: a list of protocols, [{value}]")
        return value

    @field_validator("protocols")
    @classmethod
    def _once(cls, value: tuple[ProtocolName, ...]) -> tuple[ProtocolName, ...]:
        if len(set(value)) < len(value):
            raise ValueError("a protocol is named twice; allowed: each once")
        return value

    @field_validator("data", mode="before")
    @classmethod
    def _name_alone(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("data")
    @classmethod
    def _no_clients(cls, value: DataConfig | None) -> DataConfig | None:
        if value is not None and value.partition != PartitionConfig():
            raise ValueError("a partition; allowed: none, because no client has these images")
        return value


class TuningRecord(Section):
    """How a cell's settings were found; `tune` writes it. No result and no cell's name depends on it."""

    grid: str
    """Name of the grid whose section `tune` says how, and whose base on what."""
    trials: Count
    """Settings that were tried, for every strategy alike."""
    space: dict[str, str]
    """Key -> range that was searched."""
    sampler: str
    """How points of the space were drawn."""
    split: SplitName
    """Whose images scored the trials."""
    protocol: ProtocolName
    """Whose top-1 was the score."""
    seeds: tuple[Seed, ...]
    """Of the trials."""
    score: Annotated[float, Field(ge=0, le=1)]
    """Top-1 of the winner, mean over the seeds."""
    commit: str | None = None
    """Of the code that ran the trials."""


class TrackingConfig(Section):
    """Weights & Biases mirror of a run; the run directory is written in any case."""

    wandb: Literal["offline", "online", "disabled"] = "offline"
    """offline needs no account; online needs a login."""
    project: str = "fedbench"
    """The W&B project."""
    entity: str | None = None
    """The W&B user or team; null: yours."""
    group: str | None = None
    """The W&B group; null: the seeds of a cell are one."""
    tags: tuple[str, ...] = ()
    """The W&B tags."""
    artifact: bool = False
    """Whether the trained encoder is uploaded too."""
    checkpoints: Count | None = LATER
    """Every how many rounds a checkpoint is kept for good, for `verify --rerun`; null: none after the end."""


class Config(Section):
    """One cell: a strategy, an SSL method, an encoder, a data set and a seed."""

    seed: Seed = 0
    """Seed of initial values, partition, participation, shuffling and augmentation."""
    strategy: dict[str, Any] = {"name": "fedssl"}
    """A name that `fedbench list strategies` shows, or {name: NAME, its fields and mechanisms}."""
    ssl: SSLConfig = SSLConfig()
    """The self-supervised method and its heads."""
    encoder: EncoderConfig = EncoderConfig()
    """The network that is trained: stem, blocks, norm."""
    data: DataConfig = DataConfig()
    """The images, and who has which."""
    augmentation: AugmentationConfig = AugmentationConfig()
    """How two views are made of an image."""
    federation: FederationConfig = FederationConfig()
    """Clients and rounds."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Optimizer of a client's local training."""
    probe: ProbeConfig = ProbeConfig()
    """The linear classifier."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """How encoders are evaluated, when, and on what."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """Precision of the forward and backward pass; weights travel as float32."""
    accelerator: Literal["auto", "cpu", "cuda", "mps", "xpu"] = "auto"
    """auto: the one that torch finds, else the CPU."""
    threads: Processes = 2
    """Threads of torch on the CPU; sums are split among them, so their number reaches the last bits."""
    numerics: Literal["portable"] | None = LATER
    """portable: kernels that every x86-64 processor has; null: what the processor has."""
    engine: Literal["in_process", "processes", "ray"] = "in_process"
    """Who trains the clients: this process, processes of this machine, or a Ray cluster; no bit depends on it."""
    workers: Processes | None = None
    """Processes of engine=processes or ray; null: as many as cores / threads, and one for ray."""
    tracking: TrackingConfig = TrackingConfig()
    """Where the Weights & Biases mirror goes."""
    tuning: TuningRecord | None = LATER
    """How the settings were found; `fedbench tune` writes it."""

    @field_validator("strategy", "ssl", "encoder", "data", mode="before")
    @classmethod
    def _name_alone(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _workers(self) -> "Config":
        if self.workers is not None and self.engine == "in_process":
            raise ValueError(
                f"workers={self.workers} with engine=in_process; allowed: with engine=processes or ray"
            )
        return self

    @model_validator(mode="after")
    def _portable(self) -> "Config":
        needed = {"threads": 1, "accelerator": "cpu", "precision": "32-true"}
        for key, value in needed.items():
            if self.numerics is not None and getattr(self, key) != value:
                raise ValueError(
                    f"numerics={self.numerics} with {key}={getattr(self, key)}; allowed: with {key}={value}"
                )
        return self

    @field_validator("strategy")
    @classmethod
    def _named(cls, value: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(value.get("name"), str):
            raise ValueError("needs a name: `strategy: NAME` or `strategy: {name: NAME, ...}`")
        return value
