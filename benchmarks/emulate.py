"""Every shipped configuration on a CPU: the generated CUDA, thread by thread, in several orders.

    python -m benchmarks.emulate

For each configuration of the records that come with the package a small problem is made with an odd end in N and K
and K so long that every ring of buffers goes round. The kernel runs with asynchronous work done as late as it may
be, and as early, and with threads taking turns in their order, in the reverse and shuffled
(tests/helpers/cuda_on_host.py). Results must be right, and the same bits every time: else the kernel has a race.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

from cuda_on_host import WAYS, every_way, kernel_on_host  # noqa: E402
from mma_problems import Case  # noqa: E402
from tqdm import tqdm  # noqa: E402

from benchmarks import record  # noqa: E402
from benchmarks.shapes import parse_words  # noqa: E402
from nvfp4_tvm import layout  # noqa: E402
from nvfp4_tvm.arch import ARCHS  # noqa: E402
from nvfp4_tvm.schedules.base import MatmulProblem, MRange  # noqa: E402
from nvfp4_tvm.schedules.gemm_wgmma import wgmma_kernel  # noqa: E402
from nvfp4_tvm.schedules.kernel import CudaKernel  # noqa: E402
from nvfp4_tvm.schedules.space import Config  # noqa: E402
from nvfp4_tvm.schedules.spaces import space_of  # noqa: E402
from nvfp4_tvm.schedules.tuned import shipped  # noqa: E402
from nvfp4_tvm.target import cuda_target  # noqa: E402

#: SMs of the persistent kernels' grids; some hundred of a real GPU would mostly have nothing to do.
SMS = 3


@dataclass(frozen=True)
class Subject:
    """A configuration, and the rows of activations it is recorded for."""

    arch: str
    family: str
    config: Config
    M: MRange

    def problem(self) -> MatmulProblem:
        """Return a problem of more than one tile along N, and more k than all stages hold."""
        fields = vars(self.config)
        if self.family == "gemv":
            rows, blocks, M = self.config.rows, self.config.KS * (self.config.D + 1), self.M
        else:
            rows = fields.get("block_n", 64 * fields.get("warpgroups", 2) * fields.get("warp_tiles", 1))
            stages = max(fields.get(name, 1) for name in ("stages", "x_stages", "w_stages"))
            blocks = (
                (stages + 1) * fields.get("cluster", 1) * fields.get("splits", 1) * fields.get("k_warps", 1)
            )
            M = MRange(17)
        return MatmulProblem(rows + 24, (blocks + 1) * layout.TILE_K + 16, M, bias=True, residual=True)

    def rows(self) -> tuple[int, int]:
        """Return numbers of rows that end within a tile: in the first one, and in the last there may be."""
        if self.family == "gemv":
            assert self.M.high is not None
            return max(self.M.low, self.M.high - 3), self.M.high
        tile = vars(self.config).get("tokens") or vars(self.config)["block_m"]
        return max(self.problem().M.low, tile - 3), tile + 9

    def kernel(self) -> CudaKernel:
        """Return its kernel, of a small grid where the grid is the GPU's."""
        if self.family.startswith("gemm_wgmma"):
            return wgmma_kernel(self.problem(), self.config, SMS)
        rule = space_of(self.family).rule(self.config)
        kernel = rule.apply(self.problem(), cuda_target(self.arch).target)
        if not isinstance(kernel, CudaKernel):
            raise SystemExit(f"{self}: {rule.name} does not apply to {self.problem()}")
        return kernel


def subjects(archs: list[str]) -> Iterator[Subject]:
    """Yield every configuration of the shipped records once for an architecture."""
    for arch in archs:
        seen = set()
        for one in shipped(arch).records:
            if (one.family, one.config) not in seen:
                seen.add((one.family, one.config))
                yield Subject(arch, one.family, one.config, one.M)


def run(subject: Subject) -> dict[str, Any]:
    """Return what came of one configuration; the key ``wrong`` says why it is, or is None."""
    start, problem, wrong = time.perf_counter(), subject.problem(), None
    try:
        function = kernel_on_host(subject.kernel(), cuda_target(subject.arch).target)
        for M in subject.rows():
            case = Case.random(problem, M)
            case.check(every_way(function, case.operands, case.empty(problem)))
    except (AssertionError, RuntimeError) as error:
        wrong = f"{type(error).__name__}: {error}"
    return {
        "arch": subject.arch,
        "family": subject.family,
        "config": vars(subject.config),
        "N": problem.N,
        "K": problem.K,
        "M": list(subject.rows()),
        "wrong": wrong,
        "seconds": round(time.perf_counter() - start, 1),
    }


def main() -> int:
    """Run the command line; return 1 if a configuration is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--archs", type=parse_words, default=",".join(ARCHS))
    parser.add_argument("--families", type=parse_words, help="only these")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path, default=record.RESULTS / "emulated_cpu.json")
    arguments = parser.parse_args()
    chosen = [
        s for s in subjects(arguments.archs) if not arguments.families or s.family in arguments.families
    ]
    rows = []
    with ProcessPoolExecutor(arguments.workers) as pool, tqdm(total=len(chosen)) as progress:
        futures = {pool.submit(run, subject): index for index, subject in enumerate(chosen)}
        done: dict[int, dict[str, Any]] = {}
        for future in as_completed(futures):
            row = done[futures[future]] = future.result()
            progress.update()
            if row["wrong"]:
                progress.write(f"{row['arch']} {row['family']} {row['config']}: {row['wrong']}")
        rows = [done[index] for index in sorted(done)]
    record.write(arguments.output, rows, ways=list(WAYS))
    return int(any(row["wrong"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
