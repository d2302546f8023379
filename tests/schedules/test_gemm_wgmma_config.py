import pytest

from nvfp4_tvm.errors import ShapeError
from nvfp4_tvm.schedules.gemm_wgmma_config import WgmmaConfig


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ((40, 1, 3, 3, 1), "multiple of 16"),
        ((272, 1, 3, 3, 1), "up to 256"),
        ((64, 0, 3, 3, 1), "at least 1 warpgroup"),
        ((64, 1, 1, 3, 1), "2 stages"),
        ((256, 2, 4, 3, 1), "shared memory"),
        ((64, 1, 3, 3, 3, 2), "2 are to fit"),
        ((256, 2, 2, 2, 1, 2), "do not fit"),
        ((80, 1, 2, 2, 4), "accumulators"),
        ((112, 1, 2, 2, 3), "80 registers at launch"),  # ptxas: C7602
    ],
)
def test_refusals(values, why):
    with pytest.raises(ShapeError, match=why) as error:
        WgmmaConfig(*values)
    assert "\n" not in str(error.value)


def test_names_tell_configurations_apart():
    a = WgmmaConfig(64, 1, 3, 3, 1)
    others = [
        WgmmaConfig(64, 1, 3, 3, 1, 2),
        WgmmaConfig(64, 1, 3, 3, 1, overhead=7),
        WgmmaConfig(64, 1, 3, 4, 1),
    ]
    assert len({a.name, *(other.name for other in others)}) == 4
    assert a.residents == 1
