"""The pre-training pool where training finds it: on the device if it fits, else in main memory or on disk."""

import torch
from torch import Tensor

SHARE = 0.5  # of the accelerator's free memory that images may take; the rest is the model's


class HostImages:
    """Images uint8 (N, C, H, W) that are too many for the device: a batch is copied there when it is asked for."""

    nbytes = 0  # that it takes of the device's memory

    def __init__(self, images: Tensor, device: torch.device) -> None:
        self.images, self.device = images, device

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: Tensor) -> Tensor:
        return self.images[indices].to(self.device)


Pool = Tensor | HostImages


def beside(images: Pool, indices: Tensor) -> Tensor:
    """`indices` (int64) of images, where they are looked up: no batch of them crosses over."""
    return indices.to((images.images if isinstance(images, HostImages) else images).device)


def place(images: Tensor, device: torch.device) -> Pool:
    """On `device` as one tensor, if that is the CPU or has room."""
    if device.type != "cpu" and images.nbytes > SHARE * torch.accelerator.get_memory_info(device)[0]:
        return HostImages(images, device)
    return images.to(device)
