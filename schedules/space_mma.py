"""The search space of the scheduled mma.sync GEMM: a MetaSchedule design space.

Tiles are decisions of the block computation itself (:mod:`.gemm_mma_compute` cuts every buffer into them, so
that no symbolic extent is ever split), the rest are decisions of its schedule. Both kinds are sampled with
``sample_categorical``, each among the values that lead to a candidate after the ones before; a trace holds the
decisions first and the primitives after them. :func:`replay` therefore needs the trace alone: its decisions say
which computation the primitives apply to.

MetaSchedule's own measuring is not used: ``ArgInfo`` of TVM 0.27 refuses a symbolic M, which all of these kernels
have (see :mod:`.records` for its database).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import ClassVar

from tvm import s_tir
from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.schedule import Trace

from nvfp4_tvm import layout
from nvfp4_tvm.arch import Arch, get_arch
from nvfp4_tvm.errors import NVFP4Error
from nvfp4_tvm.schedules.base import MatmulProblem, MRange
from nvfp4_tvm.schedules.gemm_mma import GemmMma
from nvfp4_tvm.schedules.gemm_mma_choice import (
    ADD_RATE,
    ADD_START,
    MAX_SPLITS,
    MAX_SUMS,
    MIN_M,
    START,
    choose_config,
)
from nvfp4_tvm.schedules.gemm_mma_compute import gemm_mma
from nvfp4_tvm.schedules.gemm_mma_config import MmaConfig
from nvfp4_tvm.schedules.gemm_mma_schedule import schedule_steps
from nvfp4_tvm.schedules.intrin.mma_sync import TOKENS
from nvfp4_tvm.schedules.model import (
    REFERENCE,
    Footprint,
    busy_share,
    clock_ratio,
    memory_us,
    mma_sync_rate,
    usual_card,
)
from nvfp4_tvm.schedules.space import Space

#: Microseconds of 128 k of a block on the reference card, fitted to the costs of `.gemm_mma_choice` within 6
#: percent: decoding a row of W by each warp that has it; barriers. Multiplying takes the tensor cores besides.
#: Whether longer stages save barriers was not measured: all of the table's are 128.
_DECODE_ROW, _BARRIERS = 8.6e-4, 0.066
#: How much longer a block takes that has an SM for itself: 1.08 to 1.14 where `.gemm_mma_choice` has both costs.
_ALONE = 1.1
#: Bytes a microsecond from shared memory to the registers of an SM: 128 a clock.
_SHARED_RATE = 128 * REFERENCE.boost_hz * 1e-6
#: An SM has four tensor cores, each fed by warps of its own.
_MIN_WARPS, _MAX_WARPS = 4, 8
#: Bytes of 128 k that a warp reads from shared memory: of a token, of a row of W with its scales.
_TOKEN_BYTES, _ROW_BYTES = 2 * layout.TILE_K, layout.TILE_K * 9 // 16


class MmaSpace(Space):
    """Tile, warp tile, split of K in the block and in the grid, stages, fragments in registers."""

    name = "gemm_mma"
    config_type = MmaConfig
    decisions: ClassVar[Mapping[str, tuple[int, ...]]] = {
        "block_m": (16, 32, 48, 64, 80, 96, 112, 128, 192),
        "block_n": (32, 64, 96, 128, 192, 256),
        "warp_m": (16, 32, 48, 64, 80, 96, 112, 128),
        "warp_n": (32, 48, 64),
        "k_warps": (1, 2, 4),
        "block_k": (128, 256),
        "stages": (2, 3, 4),
        "token_tiles": (2,),
        "splits": tuple(range(1, MAX_SPLITS + 1)),
    }

    def values(self, name: str, chosen: Mapping[str, int]) -> tuple[int, ...]:
        """See `Space.values`: what the tiles before leave possible."""
        values = super().values(name, chosen)
        if name == "warp_m":
            return tuple(value for value in values if chosen["block_m"] % value == 0)
        if name == "warp_n":
            return tuple(value for value in values if chosen["block_n"] % value == 0)
        if name == "k_warps":
            warps = chosen["block_m"] // chosen["warp_m"] * (chosen["block_n"] // chosen["warp_n"])
            return tuple(value for value in values if _MIN_WARPS <= warps * value <= _MAX_WARPS)
        if name == "token_tiles":
            return tuple(value for value in values if chosen["warp_m"] % (TOKENS * value) == 0)
        return values

    def configs(self, arch: Arch) -> Iterator[MmaConfig]:
        """See `Space.configs`; those that no SM can hold are left out."""

        rows = self.rows(arch).low
        return (config for config in super().configs(arch) if self.resident(config, rows, arch))

    def rule(self, config: MmaConfig) -> GemmMma:
        """See `Space.rule`."""
        return GemmMma(config)

    def rows(self, arch: Arch) -> MRange:
        """See `Space.rows`."""
        return MRange(MIN_M)

    def default(self, N: int, K: int, M: MRange, arch: Arch) -> MmaConfig:
        """See `Space.default`."""
        return choose_config(N, K, M, arch)

    def footprint(self, config: MmaConfig, M: int) -> Footprint:
        """See `Space.footprint`; registers are an estimate: fragments, their words, addresses."""
        fragments = 4 * config.accumulators + 8 * (config.warp_n // layout.TILE_N) + 4 * config.token_tiles
        return Footprint(config.threads, fragments + 40, config.shared_bytes())

    def suits(self, config: MmaConfig, N: int, K: int, M: MRange) -> bool:
        """See `Space.suits`: the sums of splits have a bound, and no stage beyond K is a split's own."""
        if config.splits == 1:
            return True
        stages = -(-layout.tiles(1, K)[1] * layout.TILE_K // config.block_k)
        whole = -(-stages // config.splits) > config.stages
        return whole and M.high is not None and config.splits * M.high * N * 4 <= MAX_SUMS

    def time(self, config: MmaConfig, N: int, K: int, M: int, arch: Arch) -> float:
        """See `Space.time`."""
        card = usual_card(arch)
        blocks = -(-M // config.block_m) * -(-N // config.block_n) * config.splits
        rounds = -(-blocks // card.sms)
        steps = config.stages_along_k(K) * config.block_k / layout.TILE_K
        resident = self.resident(config, M, arch)
        busy = busy_share(blocks, resident, card.sms)
        in_flight = min(resident, rounds) * _stages_bytes(config)
        step = _step(config, arch.name) * (_ALONE if blocks <= card.sms else 1)
        time = START + max(rounds * steps * step, memory_us(N, K, M, card, busy, in_flight))
        if config.splits > 1:
            rate = ADD_RATE * card.bandwidth / REFERENCE.bandwidth
            time += ADD_START + (config.splits + 1) * 4 * M * N / rate
        return time


@cache
def _step(config: MmaConfig, arch: str) -> float:
    """Microseconds of 128 k of a block."""
    card = usual_card(get_arch(arch))
    ratio = clock_ratio(card)
    operations = 2 * config.block_m * config.block_n * layout.TILE_K
    decoded = config.block_n * config.block_m // config.warp_m
    loaded = config.block_m * config.block_n // config.warp_n * _TOKEN_BYTES + decoded * _ROW_BYTES
    multiplying = operations / mma_sync_rate(get_arch(arch), card) + decoded * _DECODE_ROW * ratio
    return max(multiplying, loaded / _SHARED_RATE * ratio) + _BARRIERS * ratio


@cache
def _stages_bytes(config: MmaConfig) -> float:
    """Bytes that a block has asked for at a time."""
    return config.shared_bytes() * (config.stages - 1) / config.stages


SPACE = MmaSpace()


# ----------------------------------------------------------------------------------------
# As a design space of MetaSchedule


@cache
def next_values(N: int, K: int, M: MRange, arch: Arch) -> dict[tuple[int, ...], tuple[int, ...]]:
    """Return what each decision may be after those before it, so that a candidate comes out."""
    following: dict[tuple[int, ...], dict[int, None]] = {}
    for config in SPACE.candidates(N, K, M, arch):
        decided = tuple(getattr(config, name) for name in SPACE.decisions)
        for count, value in enumerate(decided):
            following.setdefault(decided[:count], {})[value] = None
    return {decided: tuple(sorted(values)) for decided, values in following.items()}


def scheduled(problem: MatmulProblem, config: MmaConfig, arch: Arch) -> s_tir.Schedule:
    """Return the schedule of a candidate, its decisions at the beginning of the trace.

    Raises
    ------
    NVFP4Error
        If the configuration is no candidate for the problem.
    """
    sch = s_tir.Schedule(gemm_mma(problem, config))
    following = next_values(problem.N, problem.K, problem.M, arch)
    decided = tuple(getattr(config, name) for name in SPACE.decisions)
    for count, value in enumerate(decided):
        values = following.get(decided[:count], ())
        if value not in values:
            raise NVFP4Error(f"{config.name} is no candidate for M {problem.M} of {problem.N}x{problem.K}")
        sch.sample_categorical(list(values), _even(values), decision=values.index(value))
    return schedule_steps(sch, problem, config)


def design_space(problem: MatmulProblem, arch: Arch) -> ms.space_generator.ScheduleFn:
    """Return the generator: each call samples the schedule of one candidate for the problem."""
    following = next_values(problem.N, problem.K, problem.M, arch)

    def generate(sch: s_tir.Schedule) -> list[s_tir.Schedule]:
        decided: tuple[int, ...] = ()
        while len(decided) < len(SPACE.decisions):
            values = following[decided]
            decided += (int(sch.get(sch.sample_categorical(list(values), _even(values)))),)
        config = MmaConfig(**dict(zip(SPACE.decisions, decided, strict=True)))
        return [scheduled(problem, config, arch)]

    return ms.space_generator.ScheduleFn(generate, sch_rules=[], postprocs=[], mutator_probs={})


def config_of(trace: Trace) -> MmaConfig:
    """Return the configuration that a trace decided on.

    Raises
    ------
    NVFP4Error
        If it does not begin with this space's decisions.
    """
    names, chosen = list(SPACE.decisions), dict[str, int]()
    for name, instruction in zip(names, trace.insts, strict=False):
        if instruction.kind.name != "SampleCategorical":
            break
        chosen[name] = int(instruction.attrs[0][int(trace.get_decision(instruction))])
    config = SPACE.make(chosen) if len(chosen) == len(names) else None
    if config is None:
        raise NVFP4Error(f"trace: found the decisions {chosen}, expected {', '.join(names)}")
    return config


def replay(problem: MatmulProblem, trace: Trace) -> s_tir.Schedule:
    """Return the schedule of a trace."""
    sch = s_tir.Schedule(gemm_mma(problem, config_of(trace)))
    trace.apply_to_schedule(sch, remove_postproc=False)
    return sch


def _even(values: Sequence[int]) -> list[float]:
    return [1 / len(values)] * len(values)
