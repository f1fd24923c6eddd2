"""Mine: what the images show, how many there are, and who published them under which licence."""

import torch

from fedbench.config.schema import DataConfig
from fedbench.data.source import DataSource, Part, Source
from fedbench.random import generator


class Mine(DataSource):
    """Stripes, upright or lying: replace it by your images."""

    def load(self, data: DataConfig, image_size: int) -> Source:
        """Images uint8 (N, C, H, W), C = 1 or 3, of any size, and labels int64 (N,) in 0..K-1."""
        labels = torch.arange(200) % 2
        noise = torch.rand(200, 1, 8, 8, generator=generator(0, "stripes"))
        stripes = torch.where(torch.arange(8) % 2 == 0, 0.8, 0.2).expand(8, 8)
        images = torch.where(labels.view(-1, 1, 1, 1) == 0, stripes, stripes.T) * 0.7 + noise * 0.3
        return Source("stripes", Part((images * 255).to(torch.uint8), labels), ("upright", "lying"))
