import dataclasses
import random

import pytest

from nvfp4_tvm.arch import ARCHS
from nvfp4_tvm.errors import NVFP4Error
from nvfp4_tvm.schedules.base import MRange
from nvfp4_tvm.schedules.space import HOPELESS, decode, distance, encode, judged_at
from nvfp4_tvm.schedules.spaces import SPACES, space_of

SHAPES = [(4096, 4096), (5376, 21504), (24, 48), (1024, 512)]
RANGES = [MRange(1, 1), MRange(9, 16), MRange(17, 32), MRange(129, 192), MRange(2049)]
HOPPER = {"gemm_cluster", "gemm_wgmma", "gemm_wgmma_ss"}
#: Rows that a family has candidates for on sm_90, and 5376x21504 a choice of its own.
SERVED = {"gemv": MRange(9, 16), "gemm_wgmma_ss": MRange(193, 256)}
FAMILY = pytest.mark.parametrize("space", SPACES.values(), ids=list(SPACES))


@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_89", "sm_90"])
@pytest.mark.parametrize(("N", "K"), SHAPES)
def test_candidates(arch, N, K):
    arch = ARCHS[arch]
    for M in RANGES:
        families = set()
        for family, space in SPACES.items():
            found = space.candidates(N, K, M, arch)
            if not found:
                continue
            families.add(family)
            assert len(set(found)) == len(found)
            times = [space.time(config, N, K, judged_at(M), arch) for config in found]
            assert max(times[1:], default=0) <= HOPELESS * min(times) * 1.0001
            for config in random.Random(0).sample(found, min(len(found), 20)):
                assert space.legal(config, N, K, M, arch)
                block = space.footprint(config, judged_at(M))
                assert arch.blocks_per_sm(block.threads, block.registers, block.shared) > 0
            default = space.default(N, K, M, arch)
            if default is not None and space.legal(default, N, K, M, arch):
                assert found[0] == default
        assert families, M
        assert families & HOPPER <= (HOPPER if arch.wgmma and M.low >= 17 else set())


@FAMILY
def test_what_families_choose_is_in_their_spaces(space):
    """Else the tuner could not compare its finds with what they replace."""
    for arch in ARCHS.values():
        for N, K in SHAPES[:2]:
            for M in RANGES:
                rows = space.rows(arch)
                default = space.default(N, K, M, arch) if rows is not None and M.low in rows else None
                if default is not None:
                    assert space.legal(default, N, K, M, arch), (arch.name, N, K, M, default)


@FAMILY
def test_configurations_survive_json(space):
    arch = ARCHS["sm_90"]
    M = SERVED.get(space.name, MRange(17, 32))
    for config in space.candidates(4096, 4096, M, arch)[:50]:
        assert decode(space, encode(config)) == config


@FAMILY
@pytest.mark.parametrize("change", ["missing", "unknown", "type", "bool", "impossible", "list"])
def test_damaged_configurations_are_refused(space, change):
    M = SERVED.get(space.name, MRange(17, 32))
    fields = encode(space.candidates(4096, 4096, M, ARCHS["sm_90"])[0])
    name = next(iter(fields))
    if change == "missing":
        del fields[name]
    elif change == "list":
        fields = list(fields)
    else:
        key = "nonsense" if change == "unknown" else name
        fields[key] = {"unknown": 1, "type": "1", "bool": True, "impossible": 100_000}[change]
    with pytest.raises(NVFP4Error, match=f"{space.name} configuration"):
        decode(space, fields)


@FAMILY
def test_what_is_not_in_the_space_is_not_legal(space):
    arch = ARCHS["sm_90"]
    M = SERVED.get(space.name, MRange(17, 32))
    config = space.candidates(4096, 4096, M, arch)[0]
    assert space.legal(config, 4096, 4096, M, arch)
    name = next(reversed(space.decisions))
    other = dataclasses.replace(config)
    object.__setattr__(other, name, 77)
    assert not space.legal(other, 4096, 4096, M, arch) and distance(config, other) == 1


def test_each_wgmma_gemm_has_its_own_choices():
    for M in (MRange(17, 32), MRange(193, 256), MRange(2049)):
        chosen = [
            space.default(5376, 21504, M, ARCHS["sm_90"])
            for name, space in SPACES.items()
            if name.startswith("gemm_wgmma")
        ]
        assert sum(config is not None for config in chosen) == 1, M


def test_an_unknown_family():
    with pytest.raises(NVFP4Error, match="kernel family 'x'"):
        space_of("x")
