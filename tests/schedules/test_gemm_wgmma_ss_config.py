import pytest

from nvfp4_tvm.arch import get_arch
from nvfp4_tvm.errors import ShapeError
from nvfp4_tvm.schedules.gemm_wgmma_ss_config import REGISTERS, WARPGROUPS, SharedWgmmaConfig


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ((40, 4, 2, 1), "multiple of 16"),
        ((272, 4, 2, 1), "up to 256"),
        ((64, 2, 2, 1), "3 stages of activations"),  # a deadlock on the GPU
        ((64, 4, 1, 1), "2 of weights"),
        ((64, 4, 2, 3), "warpgroups that decode"),
        ((208, 4, 2, 2), "accumulators"),
        ((256, 4, 3, 1), "shared memory"),
    ],
)
def test_refusals(values, why):
    with pytest.raises(ShapeError, match=why) as error:
        SharedWgmmaConfig(*values)
    assert "\n" not in str(error.value)


def test_names_tell_configurations_apart():
    a = SharedWgmmaConfig(128, 4, 2, 1)
    others = [
        SharedWgmmaConfig(128, 4, 2, 2),
        SharedWgmmaConfig(128, 5, 2, 1),
        SharedWgmmaConfig(128, 4, 2, 1, 7),
    ]
    assert len({a.name, *(other.name for other in others)}) == 4


@pytest.mark.parametrize("decoders", REGISTERS)
def test_warpgroups_share_the_registers_they_are_launched_with(decoders):
    decoding, multiplying = REGISTERS[decoders]
    at_launch = get_arch("sm_90").registers_per_sm // 128 // (WARPGROUPS + decoders) // 8 * 8
    assert decoding % 8 == multiplying % 8 == 0 and decoding <= at_launch <= multiplying
    assert decoders * decoding + WARPGROUPS * multiplying <= at_launch * (WARPGROUPS + decoders)
