"""Features of a frozen encoder, computed once and kept."""

import torch
from torch import Tensor

from fedbench.data import normalize
from fedbench.encoders import Encoder

CHUNK = 512  # images per forward pass


@torch.no_grad()
def extract_features(encoder: Encoder, images: Tensor) -> Tensor:
    """Features (N, D) of uint8 images (N, C, H, W), without augmentation, on the encoder's device, in float32."""
    encoder.eval()
    device = next(encoder.parameters()).device
    chunks = [encoder(normalize(chunk.to(device).float() / 255)) for chunk in images.split(CHUNK)]
    return torch.cat(chunks)
