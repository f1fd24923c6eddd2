"""The encoder's forward pass in multiply-accumulates: ptflops beside FlopCounterMode, as a second opinion."""

import contextlib
import io
from collections.abc import Iterator

import torch
from ptflops import get_model_complexity_info
from timm.layers.config import set_fused_attn, use_fused_attn
from torch.utils.flop_counter import FlopCounterMode

from fedbench.config.schema import EncoderConfig
from fedbench.encoders import build_encoder, num_blocks


def forward_macs(config: EncoderConfig) -> dict[str, int]:
    """MACs of the full encoder on one image: `flop_counter` (FLOPs / 2) and `ptflops` (with norms).

    ptflops needs attention in plain operations: it does not see inside the fused kernel.
    """
    shape = config.image_shape
    with torch.random.fork_rng(devices=[]), plain_attention():
        encoder = build_encoder(config, num_blocks(config)).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder(torch.zeros(1, *shape))
    with contextlib.redirect_stdout(io.StringIO()):
        macs, _ = get_model_complexity_info(
            encoder, shape, backend="aten", as_strings=False, print_per_layer_stat=False, verbose=False
        )
    return {"flop_counter": counter.get_total_flops() // 2, "ptflops": int(macs)}


@contextlib.contextmanager
def plain_attention() -> Iterator[None]:
    """Build timm's attention without the fused kernel."""
    before = use_fused_attn()
    set_fused_attn(False)
    try:
        yield
    finally:
        set_fused_attn(before)
