"""The search spaces by family."""

from __future__ import annotations

from nvfp4_tvm.errors import NVFP4Error
from nvfp4_tvm.schedules import space_mma
from nvfp4_tvm.schedules.space import Space
from nvfp4_tvm.schedules.space_cluster import ClusterSpace
from nvfp4_tvm.schedules.space_gemv import GemvSpace
from nvfp4_tvm.schedules.space_wgmma import WgmmaSpace
from nvfp4_tvm.schedules.space_wgmma_ss import SharedWgmmaSpace

#: In the order in which the dispatch tries families; the two kernels of the wgmma GEMM have a space each.
SPACES: dict[str, Space] = {
    space.name: space
    for space in (GemvSpace(), ClusterSpace(), WgmmaSpace(), SharedWgmmaSpace(), space_mma.SPACE)
}


def space_of(family: str) -> Space:
    """Return the space of a family.

    Raises
    ------
    NVFP4Error
        If there is none.
    """
    if family not in SPACES:
        raise NVFP4Error(f"kernel family {family!r:.80}: unknown here, expected one of {', '.join(SPACES)}")
    return SPACES[family]
