import torch

from pab.parallel.mesh import NodeGroup, open_group
from tests.ranks import run_on_ranks

SIZES = ((5, 7), (6, 9), (1, 2))


def switch_there_and_back():
    group = open_group(dp=1, cfg=1, sp=3, device=torch.device("cpu"))
    return [switch_one(group, frames, patches) for frames, patches in SIZES]


def switch_one(group: NodeGroup, frames: int, patches: int):
    before = group.sp.axis.traffic.snapshot()
    whole = torch.arange(2 * frames * patches * 4, dtype=torch.float32).reshape(2, frames, patches, 4)
    mine = group.sp.split(whole, 1)
    by_patch = group.sp.all_to_all(mine, whole_dim=1, split_dim=2, size=frames)
    back = group.sp.all_to_all(by_patch, whole_dim=2, split_dim=1, size=patches)
    return whole, by_patch, group.sp.gather(back, 1, frames), group.sp.axis.traffic.since(before)


def test_switch_moves_the_split_and_back_with_padding_cut_off():
    per_size = zip(*run_on_ranks(3, switch_there_and_back), strict=True)
    for (frames, patches), ranks in zip(SIZES, per_size, strict=True):
        whole = ranks[0][0]
        parts = torch.cat([by_patch for _, by_patch, _, _ in ranks], dim=2)
        assert torch.equal(parts[:, :, :patches], whole)
        assert not parts[:, :, patches:].any()
        for _, _, gathered, traffic in ranks:
            assert torch.equal(gathered, whole)
            assert traffic.all_to_alls == 2
            padded_frames, padded_patches = -(-frames // 3) * 3, -(-patches // 3) * 3
            sent = 2 * padded_frames // 3 * padded_patches * 4 * 4 * 2 // 3
            assert traffic.all_to_all_bytes == 2 * sent


def axes():
    group = open_group(dp=2, cfg=2, sp=1, device=torch.device("cpu"))
    value = torch.tensor([float(group.rank)])
    return [axis.all_gather(value)[0].item() for axis in (group.dp, group.cfg, group.clip, group.sp.axis)]


def test_axes_lie_dp_outermost_and_sp_innermost():
    assert run_on_ranks(4, axes) == [[0, 0, 0, 0], [1, 0, 0, 1], [0, 2, 2, 2], [1, 2, 2, 3]]


def test_a_group_of_one_passes_tensors_through():
    sp, x = NodeGroup().sp, torch.ones(2, 3, 4)
    assert sp.split(x, 1) is x
    assert sp.gather(x, 1, 3) is x
    assert sp.all_to_all(x, whole_dim=1, split_dim=2, size=3) is x
