from collections import Counter

import benchmark_modules  # noqa: F401
import pytest

from benchmarks import kernel_resources
from benchmarks.kernel_resources import count_classes, problems, resources, summarize
from nvfp4_tvm.arch import ARCHS
from nvfp4_tvm.schedules.base import MatmulProblem
from nvfp4_tvm.schedules.dispatch import kernels_for
from nvfp4_tvm.target import cuda_target

#: One weight is enough to see every entry of the tables, and it has a remainder in N and K.
N, K = 4104, 4144


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
def test_every_entry_of_the_tables_compiles_without_spills(arch):
    rows = resources(N, K, arch)
    families = {rule.name for _, rule, _ in kernels_for(MatmulProblem(N, K), cuda_target(arch).target)}
    assert {row["family"] for row in rows} == families
    assert [(row["kernel"], problem) for row in rows for problem in problems(row)] == []
    for row in rows:
        print(row)
        assert row["blocks_per_sm"] >= 1 and row["registers"] <= 255 and row["threads"] % 32 == 0
        assert row["compiled_for"] in (arch, ARCHS[arch].compile_arch)
    for family in families - {"gemm_plain"}:
        assert any(
            row["sass"].get("HMMA") or row["sass"].get("HGMMA") for row in rows if row["family"] == family
        )
    # All GEMMs keep activations in dynamic shared memory, whatever else their launches are told
    assert all(
        row["dynamic_shared"] > 0 for row in rows if row["family"] != "gemv" and "LDGSTS" in row["sass"]
    )


def test_instructions_are_counted_by_kind():
    counts = Counter({"HMMA.16816.F32.BF16": 5, "HMMA.16816.F32": 1, "LDG.E.128.CONSTANT": 3, "LDG.E.64": 9})
    counts |= Counter({"LDGSTS.E.BYPASS.LTC128B.128": 4, "LDGSTS.E": 2, "FFMA": 7})
    assert count_classes(counts) == {"HMMA": 6, "LDG.128": 3, "LDGSTS": 6, "LDGSTS.128": 4}


def row(**change):
    base = {
        "arch": "sm_89",
        "family": "gemm_mma",
        "kernel": "k",
        "N": 16,
        "K": 128,
        "M": "1..8",
        "registers": 128,
    }
    base |= {"spills": 0, "static_shared": 0, "dynamic_shared": 99 * 1024, "threads": 128, "blocks_per_sm": 1}
    return base | {"sass": {"HMMA": 8, "LDGSTS": 8, "LDGSTS.128": 8}} | change


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, None),
        ({"spills": 4}, "4 bytes of registers are spilled"),
        ({"static_shared": 1}, "101377 bytes of shared memory, the architecture has 101376"),
        ({"registers": 256}, "256 registers"),
        ({"blocks_per_sm": 0}, "no block fits on an SM"),
        ({"sass": {"HMMA": 8, "LDGSTS": 8}}, "no 16-byte load from global memory in its machine code"),
        ({"sass": {"HMMA": 8, "LDG.128": 8}}, "no LDGSTS in its machine code"),
        ({"sass": {"HMMA": 8}, "family": "gemv"}, "no 16-byte load from global memory in its machine code"),
        ({"sass": {"HMMA": 8, "LDG.128": 8}, "family": "gemv"}, None),
        (
            {"sass": {"HMMA": 8, "LDG.128": 8, "UBLKCP": 1}, "family": "gemm_wgmma"},
            "no HGMMA in its machine code",
        ),
        (
            {"sass": {"HGMMA": 8, "LDG.128": 8}, "family": "gemm_wgmma"},
            "no UBLKCP or UTMALDG in its machine code",
        ),
        # a launch that adds parts up, or prepares activations, has no products
        ({"sass": {}}, None),
        ({"sass": {}, "family": "gemm_plain"}, None),
    ],
)
def test_problems(change, problem):
    found = problems(row(**change))
    assert (problem in found) if problem else found == []


def test_summary_spans_a_family():
    rows = [
        row(registers=100),
        row(registers=120, N=32),
        row(kernel="other", sass={"HMMA": 2}),
        row(arch="sm_80"),
    ]
    rows.append(row(sass={}, threads=32))
    ours, other_arch, helpers = summarize(rows)
    assert (ours["arch"], ours["family"], ours["kernels"]) == ("sm_89", "gemm_mma", 2)
    assert ours["registers"] == [100, 128] and ours["HMMA"] == [2, 8] and ours["LDGSTS"] == [0, 8]
    assert ours["shared"] == [99 * 1024] * 2 and ours["spills"] == [0, 0]
    assert other_arch["arch"] == "sm_80" and other_arch["kernels"] == 1
    assert helpers["family"] == "gemm_mma, other launches" and helpers["threads"] == [32, 32]


def test_the_compiler_is_named():
    assert kernel_resources.nvrtc_version().startswith("12.")
