"""Weights that an encoder starts from: of a run, of an export, or of timm or torchvision, as safetensors."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fedbench.encoders.encoder import Encoder
from fedbench.encoders.twin import Twin
from fedbench.errors import UserError, shown
from fedbench.files import user_path

OF_RUN = "encoder.safetensors"  # in a run directory
CLASSIFIERS = ("head.", "fc.", "classifier.")  # beginnings of names that timm and torchvision give them


def given_file(name: str) -> Path:
    """The file that `encoder.init` names: itself, or the encoder of a run directory.

    Raises:
        UserError: it is not there.
    """
    path = user_path(name)
    file = path / OF_RUN if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"encoder.init={name!r} is not there; allowed: a .safetensors file, or a run's folder")
    return file


@torch.no_grad()
def start_from(encoder: Encoder, twin: Twin | None, name: str) -> None:
    """Give a whole encoder the weights of `encoder.init`, whose names are its own or its twin's.

    Raises:
        UserError: a tensor is missing, has another shape, or is not the encoder's nor a classifier's.
    """
    own, given = encoder.state_dict(), _read(given_file(name))
    names = {key: key for key in own}
    if twin is not None and own.keys() - given.keys():
        names = {key: twin.rename(key) for key in own}
    what = f"encoder.init={name!r}"
    for key, there in names.items():
        if there not in given:
            raise UserError(f"{what} has no {there!r}; allowed: a file with every tensor of the encoder")
        if given[there].shape != own[key].shape:
            raise UserError(
                f"{what}: {there!r} has shape {tuple(given[there].shape)}; allowed: {tuple(own[key].shape)}, "
                "the encoder's"
            )
        if own[key].is_floating_point() != given[there].is_floating_point() or not given[there].isfinite().all():
            raise UserError(
                f"{what}: {there!r} is {given[there].dtype}, or has values that are not finite; allowed: finite "
                f"values of a type like {own[key].dtype}"
            )
        own[key].copy_(given[there])
    for odd in given.keys() - set(names.values()):
        if not odd.startswith(CLASSIFIERS):
            raise UserError(
                f"{what} has {shown(odd)}, which the encoder has not; allowed: its tensors, and a classifier's "
                f"({', '.join(CLASSIFIERS)})"
            )


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return dict(load_file(file))
    except (OSError, SafetensorError) as error:
        raise UserError(f"encoder.init: {file} cannot be read: {error}") from None
