"""Small random VAEs, decoded on any number of ranks."""

import torch
import torch.distributed as dist

from pab.families.open_sora.fast_vae import use_fast
from pab.families.open_sora.temporal_vae import TemporalVAEConfig
from pab.families.open_sora.vae import OpenSoraVAE, OpenSoraVAEConfig
from pab.families.open_sora_plan.causal_tiles import Tiling
from pab.families.open_sora_plan.causal_vae import CausalVAE, CausalVAEConfig
from pab.parallel.mesh import Axis
from pab.vae.image_vae import ImageVAEConfig

SMALL = OpenSoraVAEConfig(
    spatial=ImageVAEConfig(block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4),
    temporal=TemporalVAEConfig(filters=8, num_res_blocks=1, num_groups=4),
)
TILING = Tiling(latent_size=4, sample_size=32, latent_frames=3)


def whole_axis() -> Axis:
    """The axis over all ranks of this process group; one rank without a group."""
    if not dist.is_initialized():
        return Axis()
    return Axis(size=dist.get_world_size(), rank=dist.get_rank(), group=dist.group.WORLD)


def open_sora_vae() -> OpenSoraVAE:
    torch.manual_seed(5)
    return OpenSoraVAE(SMALL).eval()


def causal_vae() -> CausalVAE:
    torch.manual_seed(6)
    return CausalVAE(CausalVAEConfig(hidden_size=32, hidden_size_mult=(1, 1, 1, 1), num_res_blocks=1)).eval()


@torch.inference_mode()
def decode_open_sora(num_frames: int, *, fast: bool = False) -> torch.Tensor | None:
    vae = open_sora_vae()
    if fast:
        use_fast(vae)
    noise = torch.randn(1, *vae.latent_shape(num_frames, 16, 24), generator=torch.Generator().manual_seed(1))
    decoded = vae.decode_frames(noise, num_frames, whole_axis())
    return None if decoded is None else decoded.frames


@torch.inference_mode()
def decode_causal(frames: int, height: int, width: int) -> torch.Tensor | None:
    noise = torch.randn(1, 4, frames, height, width, generator=torch.Generator().manual_seed(2))
    return causal_vae().decode(noise, tiling=TILING, axis=whole_axis())
