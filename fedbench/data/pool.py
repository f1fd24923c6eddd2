"""The pre-training pool where training finds it: on the device if it fits, else in main memory or on disk."""

import torch
from torch import Tensor

SHARE = 0.5  # of the GPU's free memory that images may take; the rest is the model's


class HostImages:
    """Images uint8 (N, C, H, W) that are too many for the GPU: a batch is copied there when it is asked for."""

    nbytes = 0  # that it takes of the GPU's memory

    def __init__(self, images: Tensor, device: torch.device) -> None:
        self.images, self.device, self.is_cuda = images, device, device.type == "cuda"

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: Tensor) -> Tensor:
        return self.images[indices.cpu()].to(self.device)


Pool = Tensor | HostImages


def place(images: Tensor, device: torch.device) -> Pool:
    """On `device` as one tensor, if that is the CPU or has room."""
    if device.type == "cuda" and images.nbytes > SHARE * torch.cuda.mem_get_info(device)[0]:
        return HostImages(images, device)
    return images.to(device)
