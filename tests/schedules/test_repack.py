import numpy as np
import pytest
import tvm

from nvfp4_tvm import layout
from nvfp4_tvm.schedules.repack import KERNEL, cpu_repack
from nvfp4_tvm.target import resolve_target


def compiled(target):
    return tvm.compile(cpu_repack(), target=resolve_target(target).target)


@pytest.mark.parametrize(
    ("target", "stores"),
    [
        ("llvm -mcpu=znver3", "vmovntp"),
        ("llvm -mcpu=skylake-avx512", "vmovntp"),
        ("llvm -mcpu=x86-64-v2", "movntp"),
    ],
)
def test_codes_are_streamed_past_the_caches(target, stores):
    """In whole vectors, and no helper is called: all are inlined."""
    asm = compiled(target).mod.inspect_source("asm")
    assert stores in asm.replace("movntdq", "movntps")
    assert not [
        line for line in asm.splitlines() if "call" in line and "nvfp4_" in line and KERNEL not in line
    ]


def test_pieces_of_a_row_lie_together():
    """What the kernel relies on: the words of a row's 128-block follow one another, as do scales of two rows."""
    for n in range(layout.TILE_N):
        places = [layout.word_index(n, k) for k in range(0, layout.TILE_K, layout.CODES_PER_WORD)]
        flat = [
            np.ravel_multi_index(place, (1, 1, 2, layout.LANES, layout.WORDS_PER_LANE)) for place in places
        ]
        assert flat == list(range(flat[0], flat[0] + 16))
    for g in range(8):
        for group in range(layout.GROUPS_PER_TILE):
            (_, _, lane, byte), first = layout.scale_index(g, group), layout.scale_index(g, 0)[2]
            assert (lane, byte) == (first + group // 2, group % 2)
            assert layout.scale_index(g + 8, group) == (0, 0, lane, byte + 2)


def test_steps_of_the_permutation():
    words = np.random.default_rng(0).integers(0, 2**32, 1000, np.uint32)
    found = words
    for moves in layout.PACK_STEPS:
        found = layout.move_bits(found, moves)
    np.testing.assert_array_equal(found, layout.move_bits(words, layout.PACK_MOVES))
