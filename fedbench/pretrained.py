"""What comes out of a run: its encoder, as a torch module and as the state dict of a timm or torchvision model."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

import fedbench
from fedbench.config import EncoderConfig
from fedbench.data.views.augment import MEAN, STD, normalize
from fedbench.encoders import (
    Encoder,
    Twin,
    build_encoder,
    image_shape,
    load_architecture,
    load_transforms,
    num_blocks,
)
from fedbench.errors import UserError, shown
from fedbench.files import user_path, write_atomically
from fedbench.plugins import is_place
from fedbench.tracking.run_directory import ENCODER, MANIFEST, SUMMARY, RunDirectory


class PretrainedEncoder(nn.Module):
    """Images in, features out: an encoder together with the normalisation that it was trained with.

    Attributes:
        encoder: takes images that are normalised already, as (x - 0.5) / 0.25.
        image_size, in_channels: pixels and channels of the images.
        feature_dim: width of the features.
    """

    def __init__(self, encoder: Encoder, config: EncoderConfig) -> None:
        super().__init__()
        self.encoder = encoder
        self.image_size = config.image_size
        self.in_channels = config.in_channels
        self.feature_dim = encoder.feature_dim

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, feature_dim) of images (B, in_channels, image_size, image_size).

        The images are uint8, or floating point in [0, 1]: not normalised, that is done here.

        Raises:
            UserError: for images of another shape or type.
        """
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise UserError(f"images of {images.dtype}; allowed: torch.uint8, or floating point in [0, 1]")
        shape = (self.in_channels, self.image_size, self.image_size)
        if images.ndim != 4 or tuple(images.shape[1:]) != shape:
            raise UserError(f"images of shape {tuple(images.shape)}; allowed: (B, {', '.join(map(str, shape))})")
        return self.encoder(normalize(images / 255 if images.dtype == torch.uint8 else images))


def load_encoder(path: str | Path, plugins: bool = False) -> PretrainedEncoder:
    """The encoder of a finished run, on the CPU, in eval mode; see `PretrainedEncoder` for what it takes.

    `path` is the run directory, or the encoder.safetensors in it. With `plugins`, code is executed that the run
    names by a file or a dotted path; somebody else's run may name anything.

    Raises:
        UserError: where there is no finished run, its files are damaged, or it names code, without `plugins`.
    """
    run, config = _finished_run(user_path(path), plugins)
    run.encoder_digest()  # else flipped bits would load
    state = _read_state(run.path / ENCODER)
    with torch.random.fork_rng(devices=[]):  # building draws weights, which are not kept
        encoder = build_encoder(config, num_blocks(config))
    try:
        encoder.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{run.path / ENCODER} does not fit {run.path / MANIFEST}: {error}") from None
    return PretrainedEncoder(encoder, config).eval()


def export(path: str | Path, out: Path | None = None, plugins: bool = False) -> tuple[Path, str]:
    """Write a run's encoder as the state dict of the same model in timm (a ViT) or torchvision (a ResNet).

    Args:
        path: the run directory, or the encoder.safetensors in it.
        plugins: see `load_encoder`.
        out: a .safetensors file; None for `encoder.timm.safetensors`, or `.torchvision.`, in the run directory.

    Returns:
        The file, and Python lines that load it.

    Raises:
        UserError: as `load_encoder`, and for an `out` that is not to be written to.
    """
    run, config = _finished_run(user_path(path), plugins)
    twin = load_architecture(config).twin(image_shape(config))
    if twin is None:
        raise UserError(
            f"{run.path.name}: encoder={config.name} has no counterpart in another library; allowed: "
            f"fedbench.load_encoder({str(run.path)!r})"
        )
    file = out or run.path / f"encoder.{twin.library}.safetensors"
    if file.suffix != ".safetensors" or file.is_dir() or file.resolve() == (run.path / ENCODER).resolve():
        raise UserError(f"--out {file}; allowed: a .safetensors file that is not the run's own")
    state = load_encoder(run.path, plugins).encoder.state_dict()
    for transform in reversed(load_transforms(config)):
        merged = transform.merge(state)
        if merged is None:
            raise UserError(
                f"{run.path.name}: what encoder.transforms makes of the encoder is in no other library; allowed: "
                f"fedbench.load_encoder({str(run.path)!r})"
            )
        state = merged
    content = save({twin.rename(name): tensor for name, tensor in state.items()}, _header(run, config, twin))
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, content)
    return file, _usage(file, config, twin)


def _finished_run(path: Path, plugins: bool) -> tuple[RunDirectory, EncoderConfig]:
    """The run directory that `path` is or lies in, and the configuration of its encoder."""
    run = RunDirectory(path.parent if path.name == ENCODER else path)
    if not (run.path / MANIFEST).is_file():
        raise UserError(f"{str(path)!r} is no run; allowed: a run directory, or the {ENCODER} in it")
    if not (run.path / SUMMARY).is_file() or not (run.path / ENCODER).is_file():
        raise UserError(f"{str(path)!r} is not finished, so it has no encoder yet; `run` it to its end")
    try:
        config = EncoderConfig.model_validate(run.manifest()["config"]["encoder"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{run.path / MANIFEST} is not that of a run: {error}") from None
    for name in (config.name, *(one["name"] for one in config.transforms or ())):
        if is_place(name) and not plugins:
            raise UserError(
                f"{run.path.name} names {shown(name)}, which would be executed; allowed: encoders and transforms "
                "with a name, or plugins=True (--plugins) where you have read it"
            )
    return run, config


def _read_state(file: Path) -> dict[str, Tensor]:
    try:
        state: dict[str, Tensor] = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None
    return state


def _header(run: RunDirectory, config: EncoderConfig, twin: Twin) -> dict[str, str]:
    """The file's metadata: which model it fits, what images that takes, and where it comes from."""
    facts: dict[str, Any] = run.manifest()
    return {
        "format": "pt",
        "library": twin.library,
        "arguments": json.dumps(twin.arguments),
        "code": twin.code,
        "input": json.dumps([config.in_channels, config.image_size, config.image_size]),
        "mean": str(MEAN),
        "std": str(STD),
        "fedbench": fedbench.__version__,
        "run": str(facts.get("cell_name")),
        "commit": str(facts.get("commit")),
    }


def _usage(file: Path, config: EncoderConfig, twin: Twin) -> str:
    shape = f"(B, {config.in_channels}, {config.image_size}, {config.image_size})"
    return "\n".join(
        [
            "from safetensors.torch import load_file",
            twin.code,
            f"model.load_state_dict(load_file({str(file)!r}))",
            f"model.eval()  # takes float images {shape} in [0, 1], normalised as (images - {MEAN}) / {STD}",
        ]
    )
