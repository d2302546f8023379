"""The architecture table: invariants, lookups, occupancy."""

import dataclasses

import pytest

from nvfp4_tvm.arch import ARCHS, KIB, Arch, Card, arch_of_capability, get_arch
from nvfp4_tvm.errors import TargetError


@pytest.mark.parametrize(
    ("name", "shared", "compile_arch"),
    [("sm_80", 163, "sm_80"), ("sm_86", 99, "sm_86"), ("sm_89", 99, "sm_89"), ("sm_90", 227, "sm_90a")],
)
def test_limits(name, shared, compile_arch):
    arch = get_arch(name)
    assert arch.shared_per_block == shared * KIB
    assert arch.compile_arch == compile_arch
    assert get_arch(compile_arch) is arch
    assert arch_of_capability(f"{name[3]}.{name[4]}") is arch
    assert arch.capability == (int(name[3]), int(name[4]))


def test_only_hopper_has_wgmma_tma_pdl():
    for arch in ARCHS.values():
        assert arch.wgmma == arch.tma == arch.pdl == (arch.name == "sm_90")


def test_threads_per_sm():
    # CUDA C++ Programming Guide: 2048 on 8.0 and 9.0, 1536 on 8.6 and 8.9
    assert [a.max_threads_per_sm for a in ARCHS.values()] == [2048, 1536, 1536, 2048]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sm_75", "no bf16 mma.sync"),
        ("sm_70", "no bf16 mma.sync"),
        ("sm_87", "not in the architecture table"),
        ("sm_89a", "no such feature set"),
        ("sm_100", "FP4 units"),
        ("sm_100a", "FP4 units"),
        ("sm_120", "FP4 units"),
        ("gfx90a", "form sm_XY"),
        ("sm_", "form sm_XY"),
        ("", "form sm_XY"),
    ],
)
def test_unknown_names_are_refused(name, words):
    with pytest.raises(TargetError, match=words) as info:
        get_arch(name)
    message = str(info.value)
    assert "\n" not in message
    assert all(known in message for known in ARCHS)


@pytest.mark.parametrize("version", ["", "8", "x.y", "8.9.1", "sm_89"])
def test_malformed_capability(version):
    with pytest.raises(TargetError, match="malformed"):
        arch_of_capability(version)


def test_unsupported_capability():
    with pytest.raises(TargetError, match="sm_75"):
        arch_of_capability("7.5")


@pytest.mark.parametrize(
    "change",
    [
        {"name": "89"},
        {"compile_arch": "sm_89a"},
        {"shared_per_block": 100 * KIB},
        {"max_blocks_per_sm": 49},
        {"max_warps_per_sm": 16},
        {"registers_per_block": 128 * KIB},
        {"wgmma": True},
        {"mma_bf16": False},
        {"cards": ()},
    ],
)
def test_invariants_are_asserted(change):
    with pytest.raises(AssertionError):
        dataclasses.replace(ARCHS["sm_89"], **change)


def test_card_invariants_are_asserted():
    card = ARCHS["sm_89"].cards[0]
    with pytest.raises(AssertionError):
        dataclasses.replace(card, bandwidth=1008.0)
    with pytest.raises(AssertionError):
        dataclasses.replace(card, l2_bytes=72)


def test_frozen():
    arch: Arch = ARCHS["sm_80"]
    card: Card = arch.cards[0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        arch.wgmma = True  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        card.sms = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "threads", "registers", "shared", "blocks"),
    [
        # Worked by hand from the limits: the binding one is named
        ("sm_80", 1024, 32, 0, 2),  # 64 warps
        ("sm_89", 1024, 32, 0, 1),  # 48 warps hold one block of 32
        ("sm_89", 32, 16, 0, 24),  # blocks
        ("sm_86", 32, 16, 0, 16),  # blocks
        ("sm_90", 128, 255, 0, 2),  # registers: 8 warps of 256 x 32 fill 64 Ki
        ("sm_90", 256, 128, 0, 2),  # registers
        ("sm_89", 128, 64, 48 * KIB, 2),  # shared memory: 2 x 49 <= 100 KiB
        ("sm_89", 128, 64, 49 * KIB, 2),  # 2 x 50 = 100 KiB, exactly
        ("sm_89", 128, 64, 49 * KIB + 1, 1),
        ("sm_89", 128, 64, 99 * KIB, 1),
        ("sm_89", 128, 64, 99 * KIB + 1, 0),  # too much shared memory
        ("sm_90", 1025, 32, 0, 0),  # too many threads
        ("sm_90", 1024, 128, 0, 0),  # too many registers for one block
    ],
)
def test_blocks_per_sm(name, threads, registers, shared, blocks):
    assert get_arch(name).blocks_per_sm(threads, registers, shared) == blocks
