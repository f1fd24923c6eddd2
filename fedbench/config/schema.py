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
    ValidationInfo,
    field_validator,
    model_validator,
)

from fedbench.protocols import ProtocolName

SplitName = Literal["validation", "test"]
Probability = Annotated[float, Field(ge=0, le=1)]
# A key that came after there were results: left out where it is not given, so that those keep their names.
LATER: Any = Field(default=None, exclude_if=lambda value: value is None)


class Section(BaseModel):
    """Frozen, and closed: a key that is not declared here is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("true and false are not numbers or names")
        return value


class SSLConfig(Section):
    """Self-supervised method and its heads."""

    name: str = "moco_v3"
    hidden_dim: PositiveInt = 512  # [LW] Sec. 4.1: width of both heads' hidden layers
    output_dim: PositiveInt = 256  # [LW] Sec. 4.1
    temperature: PositiveFloat = 0.05  # [LW] Eq. 2; InfoNCE and NT-Xent; BYOL has none
    momentum: Probability = 0.99  # [LW] Sec. 4.1; of the target branch; SimCLR has none


class EncoderConfig(Section):
    """Encoder as stem + blocks + norm. `patch_size`, `width` and `heads` are the ViT's."""

    name: Literal["vit", "resnet18"] = "vit"
    image_size: Annotated[int, Field(ge=2)] = 8  # pixels; images of another size are resized once, when loaded
    patch_size: PositiveInt = 2  # pixels
    width: PositiveInt = 64
    depth: PositiveInt = 4  # blocks; of ResNet-18 always 4, its residual stages
    heads: PositiveInt = 4
    in_channels: Literal[1, 3] = 1
    # Of ResNet-18. cifar: 3x3 at full resolution; imagenet: torchvision's own, 7x7 with stride 2 and max-pooling,
    # which is the paper's even at 32 pixels. None: cifar up to 64 pixels, imagenet above.
    stem: Literal["cifar", "imagenet"] | None = LATER

    @model_validator(mode="after")
    def _combination(self) -> "EncoderConfig":
        if self.name != "resnet18" and self.stem is not None:
            raise ValueError(f"stem={self.stem} with name={self.name}; allowed: with resnet18")
        if self.name == "vit":
            if self.image_size % self.patch_size:
                raise ValueError(
                    f"image_size={self.image_size} is not divisible by patch_size={self.patch_size}; "
                    "allowed: a patch_size that divides image_size"
                )
            if self.width % self.heads:
                raise ValueError(
                    f"width={self.width} is not divisible by heads={self.heads}; "
                    "allowed: a number of heads that divides width"
                )
            if self.width % 4:
                raise ValueError(
                    f"width={self.width} is not divisible by 4; allowed: multiples of 4 "
                    "(sine and cosine of two coordinates in the position embedding)"
                )
        elif self.depth != 4:
            raise ValueError(f"depth={self.depth}; allowed for resnet18: 4, its residual stages")
        return self


class PartitionConfig(Section):
    """How the pre-training pool is split over the clients."""

    name: Literal["iid", "dirichlet", "classes", "quantity", "groups"] = "iid"
    beta: PositiveFloat = 0.5  # of dirichlet: of each class over clients; of quantity: of sizes over clients
    classes: PositiveInt | None = LATER  # of classes: how many each client has, k
    file: str | None = LATER  # of groups: CSV with the columns image and group; each group is a client
    min_size: Annotated[int, Field(ge=2)] = 2  # samples per client; BatchNorm and InfoNCE need two

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

    name: str = "digits"  # `list datasets` shows them; or package.module:Class, or a path ending in .py
    path: str | None = None  # folder of the files, file of npz; None: data/NAME, where the set has published files
    download: bool = Field(default=False, exclude=True)  # whether files that are not there are downloaded
    size: PositiveInt | None = LATER  # pixels; of a set that is published in several sizes; None: the nearest
    num_train: Annotated[int, Field(ge=2)] | None = (
        None  # samples kept for pre-training and probe training; None = all
    )
    labels: bool = Field(default=True, exclude_if=lambda value: value)  # false: folders are no classes
    skip_broken: bool = Field(default=False, exclude_if=lambda value: not value)  # images that cannot be read
    partition: PartitionConfig = PartitionConfig()


class AugmentationConfig(Section):
    """The six operations of [LW] Sec. 4.1, applied to each of the two views."""

    name: Literal["batched", "lightly"] = "batched"  # batched tensors, or lightly's transform per image
    min_scale: Annotated[float, Field(gt=0, le=1)] = 0.08  # smallest crop, share of the image's area
    flip: Probability = 0.5
    jitter: Probability = 0.8
    jitter_strength: Annotated[float, Field(ge=0, le=5)] = (
        0.5  # 0.5: brightness, contrast 0.2, saturation 0.1, hue 0.05
    )
    grayscale: Probability = 0.2
    blur: tuple[Probability, Probability] = (0.5, 0.5)  # of view 1 and of view 2
    solarize: tuple[Probability, Probability] = (0.0, 0.2)  # of view 1 and of view 2


class FederationConfig(Section):
    """Clients and rounds ([LW] Algorithm 1)."""

    num_clients: PositiveInt = 5  # 1: centralised training, one client has all the data
    participants: PositiveInt | None = None  # clients per round, drawn uniformly; None = all
    rounds: NonNegativeInt = 48  # R, over all stages; 0: the untrained encoder
    rounds_per_stage: tuple[PositiveInt, ...] | None = None  # R_s, adding up to R; None = R / S
    local_epochs: PositiveInt = 2  # E
    dropout_before: Probability = 0.0  # a drawn client is lost before it is sent anything
    dropout_after: Probability = 0.0  # ... or after training, before its upload: its download is spent
    client_memory: Literal["kept", "none"] = (
        "kept"  # what a client holds after a round; none: the paper's worst case
    )
    late_clients: NonNegativeInt = 0  # the last of the clients join late
    late_round: NonNegativeInt = 0  # round (0-based) from which they can be drawn

    @model_validator(mode="after")
    def _schedule(self) -> "FederationConfig":
        stages = self.rounds_per_stage
        if stages is not None and sum(stages) != self.rounds:
            raise ValueError(
                f"rounds_per_stage={list(stages)} adds up to {sum(stages)}, but rounds={self.rounds}; "
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
    """AdamW of a client's local training; learning rate = base_lr * batch_size / 256 ([LW] Sec. 4.1)."""

    base_lr: PositiveFloat = 1.5e-4
    batch_size: Annotated[int, Field(ge=2)] = 64  # [LW]: 512; ours: 64, because a digits client has 287
    weight_decay: NonNegativeFloat = 1e-5

    @property
    def lr(self) -> float:
        """Learning rate of a step."""
        return self.base_lr * self.batch_size / 256


class ProbeConfig(Section):
    """Classifier of `linear` and `few_label_*`, on frozen, standardised features: AdamW with cosine decay."""

    epochs: PositiveInt = 100
    batch_size: PositiveInt = 256
    lr: PositiveFloat = 1e-1
    weight_decay: NonNegativeFloat = 0.0


class KNNConfig(Section):
    """Nearest neighbours of the protocol `knn`; Wu et al., arXiv:1805.01978, Sec. 3.4."""

    k: PositiveInt = 200  # neighbours; fewer where a class has fewer labelled images on average
    temperature: PositiveFloat = 0.07  # of the votes' weights


class FinetuneConfig(Section):
    """Training of encoder and classifier under the protocol `finetune` ([LW] Sec. 4.1)."""

    epochs: PositiveInt = 40
    warmup_epochs: NonNegativeInt = 10  # of these: the learning rate rises linearly, then decays as a cosine
    batch_size: Annotated[int, Field(ge=2)] = 256
    lr: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 1e-5
    num_ops: PositiveInt = 2  # of RandAugment, for each image; [LW] names no number, torchvision's default
    magnitude: Annotated[int, Field(ge=0, le=30)] = 9  # of RandAugment, of 30; the same

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

    # What is scored. validation: a tenth of the training images, on which then nobody trains; for choosing
    # settings (`tune`), so that the test images, which are not read, choose nothing.
    split: SplitName = Field(default="test", exclude_if=lambda value: value == "test")
    protocols: Annotated[tuple[ProtocolName, ...], Field(min_length=1)] = ("linear",)
    every: NonNegativeInt = 0  # rounds from one evaluation to the next during training; 0: at the end only
    data: DataConfig | None = None  # another data set than the one of pre-training; None: the same
    knn: KNNConfig = KNNConfig()
    finetune: FinetuneConfig = FinetuneConfig()

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

    grid: str  # whose section `tune` says how, and whose base on what
    trials: PositiveInt  # settings that were tried, for every strategy alike
    space: dict[str, str]  # key -> range that was searched
    sampler: str
    split: SplitName  # whose images scored the trials
    protocol: ProtocolName  # whose top-1 was the score
    seeds: tuple[NonNegativeInt, ...]  # of the trials
    score: Annotated[float, Field(ge=0, le=1)]  # of the winner, mean over the seeds
    commit: str | None = None  # of the code that ran the trials


class TrackingConfig(Section):
    """Weights & Biases mirror of a run; the run directory is written in any case."""

    wandb: Literal["offline", "online", "disabled"] = "offline"
    project: str = "fedbench"
    entity: str | None = None
    group: str | None = None  # None: a cell's seeds are a group
    tags: tuple[str, ...] = ()
    artifact: bool = False  # also upload the trained encoder


class Config(Section):
    """One cell: a strategy, an SSL method, an encoder, a data set and a seed."""

    seed: Annotated[int, Field(ge=0)] = 0
    strategy: dict[str, Any] = {"name": "fedssl"}  # `name` or `{name: ..., its fields ...}`
    ssl: SSLConfig = SSLConfig()
    encoder: EncoderConfig = EncoderConfig()
    data: DataConfig = DataConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    federation: FederationConfig = FederationConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    probe: ProbeConfig = ProbeConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    accelerator: Literal["auto", "cpu", "cuda", "mps", "xpu"] = "auto"  # auto: what torch finds, else the CPU
    threads: PositiveInt = (
        2  # of torch on the CPU; sums are split among them, so their number reaches the last bits
    )
    numerics: Literal["portable"] | None = LATER  # kernels that every x86-64 has; None: what the processor has
    engine: Literal["in_process", "processes"] = "in_process"  # who trains the clients; no bit depends on it
    workers: PositiveInt | None = None  # processes of `engine: processes`; None: as many as cores / threads
    tracking: TrackingConfig = TrackingConfig()
    tuning: TuningRecord | None = LATER

    @field_validator("strategy", "ssl", "encoder", "data", mode="before")
    @classmethod
    def _name_alone(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _workers(self) -> "Config":
        if self.workers is not None and self.engine != "processes":
            raise ValueError(f"workers={self.workers} with engine={self.engine}; allowed: with engine=processes")
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
