"""Which expert and which rows a tile of rows has, found on the device from ``indptr``.

Tiles are counted expert by expert, ``ceil(rows / height)`` for each, so that none has rows of two experts. There
are two forms beside each other: TIR, which runs on every target and is what schedules are tested with, and CUDA,
which kernels call through ``T.cuda.func_call(name, ..., source_code=source)``. Both give (expert, first row, end):
the tile's rows are ``first .. end - 1``.

In CUDA each warp searches by itself, 32 experts at a time: a lane counts the tiles of one expert, a scan over the
lanes adds them. There may be more thread blocks than tiles (a grid is launched for the most there can be): those
without a tile end here, all of their threads. The compiler does not know that: loads which it moves up to before
the end must stay inside the arrays, so such a block has expert 0.
"""

from __future__ import annotations

from tvm import tirx
from tvm.tirx import Buffer, Expr
from tvm.tirx.script.builder import ir as T

from nvfp4_tvm.arch import WARP_SIZE
from nvfp4_tvm.schedules.grouped import GroupedProblem

# Loads are coherent: with programmatic dependent launch the predecessor may have written indptr
_GROUPED = """
__device__ __forceinline__ void {name}(
    int& expert, int& first, int& end, const int* indptr, int tile, int rows) {{
  const int lane = threadIdx.x & 31;
  int low[{rounds}], high[{rounds}];
  #pragma unroll
  for (int round = 0; round < {rounds}; ++round) {{
    const int e = round * 32 + lane;
    low[round] = high[round] = 0;
    if (e < {experts}) {{
      asm volatile("ld.global.s32 %0, [%1];" : "=r"(low[round]) : "l"(indptr + e));
      asm volatile("ld.global.s32 %0, [%1];" : "=r"(high[round]) : "l"(indptr + e + 1));
    }}
  }}
  int owner = 0, begin = 0, stop = 0;
  #pragma unroll
  for (int round = 0; round < {rounds}; ++round) {{
    const int count = (high[round] - low[round] + {last}) / {height};
    int sum = count;
    #pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {{
      const int other = __shfl_up_sync(0xffffffffu, sum, distance);
      if (lane >= distance) sum += other;
    }}
    const int within = tile - (sum - count);
    const unsigned found = __ballot_sync(0xffffffffu, tile >= 0 && within >= 0 && within < count);
    if (found) {{
      const int source = __ffs(found) - 1, start = low[round] + within * {height};
      owner = round * 32 + source;
      begin = __shfl_sync(0xffffffffu, start, source);
      stop = __shfl_sync(0xffffffffu, high[round], source);
    }}
    tile -= __shfl_sync(0xffffffffu, sum, 31);
  }}
  if (stop == 0) asm volatile("exit;" ::: "memory");
  expert = owner; first = begin; end = min(min(begin + {height}, stop), rows);
}}
"""
_SELECTED = """
__device__ __forceinline__ void {name}(
    int& expert, int& first, int& end, const int* indptr, int tile, int rows) {{
  asm volatile("ld.global.s32 %0, [%1];" : "=r"(expert) : "l"(indptr + tile));
  first = tile; end = tile + 1;
}}
"""


def cuda_tile(problem: GroupedProblem, height: int) -> tuple[str, str]:
    """Return name and source of ``f(int& expert, int& first, int& end, int* indptr, int tile, int rows)``."""
    if problem.selected:
        name = "nvfp4_selected_expert"
        return name, _SELECTED.format(name=name)
    name = f"nvfp4_expert_tile_{problem.experts}_{height}"
    rounds = -(-problem.experts // WARP_SIZE)
    return name, _GROUPED.format(
        name=name, experts=problem.experts, height=height, last=height - 1, rounds=rounds
    )


def emit_tile(
    problem: GroupedProblem, height: int, found: tuple[Buffer, ...], tile: Expr, indptr: Buffer, rows: Expr
) -> None:
    """Emit TIR that stores expert, first and end of a tile to three buffers; a tile that there is not has no rows.

    Parameters
    ----------
    found : tuple of Buffer
        Of expert, first and end, int32.
    tile : Expr
        The tile, also the index to store to.
    rows : Expr
        All rows, int32.
    """
    expert, first, end = found

    def store(buffer: Buffer, value: Expr) -> None:
        T.buffer_store(buffer, value, [tile])

    if problem.selected:
        for buffer, value in zip(found, (indptr[0, tile], tile, tile + 1), strict=True):
            store(buffer, value)
        return
    for buffer in found:
        store(buffer, tirx.const(0, "int32"))
    # While it searches, first counts the tiles before the expert
    with T.serial(problem.experts) as e:
        low, high = indptr[e], indptr[e + 1]
        tiles = (high - low + (height - 1)) // height
        with T.If(end[tile] == 0), T.Then(), T.If(tile - first[tile] < tiles):
            with T.Then():
                store(expert, e)
                store(first, low + (tile - first[tile]) * height)
                store(end, T.min(T.min(first[tile] + height, high), rows))
            with T.Else():
                store(first, first[tile] + tiles)
    with T.If(end[tile] == 0), T.Then():
        store(first, tirx.const(0, "int32"))
