"""The repack on the CPU: tiles of 16 rows in parallel."""

from __future__ import annotations

from tvm import s_tir
from tvm.s_tir.dlight.base import ScheduleRule
from tvm.target import Target
from tvm.tirx import PrimFunc

#: Blocks of :func:`nvfp4_tvm.op.pack.repack`, whose first axis is the tile.
BLOCKS = ("words", "block_scales")


class CPURepack(ScheduleRule):
    """Parallelise the packing of codes and scales; for ``dlight.ApplyDefaultSchedule``."""

    def apply(self, func: PrimFunc, target: Target, _tunable: bool) -> s_tir.Schedule | None:
        """Return the schedule, or None if ``func`` is no repack or the target no CPU."""
        if target.kind.name != "llvm":
            return None
        sch = s_tir.Schedule(func)
        names = [sch.get(block).name_hint for block in sch.get_child_blocks(sch.get_sblock("root"))]
        if not set(BLOCKS) <= set(names):
            return None
        for name in BLOCKS:
            tile, *_ = sch.get_loops(sch.get_sblock(name))
            sch.parallel(tile)
        return sch
