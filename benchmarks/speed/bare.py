"""The honest limit: local training as a plain PyTorch loop, with the arithmetic of `training.local.fit`.

No Lightning, no payload, no strategy: samples, augmentation, loss, AdamW, momentum, and nothing else. Heads,
encoder and loss are the SSL method's own modules, called as functions.
"""

import torch
from torch import Tensor

from fedbench.config import Config
from fedbench.data import Views
from fedbench.ssl import SSLMethod
from fedbench.training.local import local_batches


def bare_fit(model: SSLMethod, images: Tensor, indices: Tensor, views: Views, config: Config, seed: int) -> float:
    """Train `model` on the samples `indices` (N,) of `images`; returns the mean loss of the steps."""
    model.rebuild_target()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    names = [name for name, _ in model.named_parameters() if name.startswith("target_")]  # SimCLR has none
    target = [model.get_parameter(name) for name in names]
    online = [model.get_parameter(name.removeprefix("target_")) for name in names]
    optimizer = torch.optim.AdamW(
        trained, lr=config.optimizer.lr, weight_decay=config.optimizer.weight_decay, fused=True
    )
    draw, shuffle = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)
    epochs = config.federation.local_epochs
    losses = torch.zeros(())
    batches = local_batches(indices, config.optimizer.batch_size, epochs, shuffle)
    for batch in batches:
        loss = model.training_step(views(images[batch], draw))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if target:
            with torch.no_grad():
                torch._foreach_lerp_(target, online, 1 - model.momentum)
        losses += loss.detach()
    return (losses / len(batches)).item()
