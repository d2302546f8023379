"""Records for tests of what reads them."""

from nvfp4_tvm.arch import ARCHS
from nvfp4_tvm.schedules.base import MRange
from nvfp4_tvm.schedules.records import Record
from nvfp4_tvm.schedules.space import judged_at
from nvfp4_tvm.schedules.spaces import space_of

FEW = MRange(1, 8)


def record(N=4096, K=4096, M=FEW, family="gemv", arch="sm_89", which=3, time=None, **more):
    """One of a family's candidates with the model's time, or another one."""
    space = space_of(family)
    config = space.candidates(N, K, M, ARCHS[arch])[which]
    rows = judged_at(M)
    values = {
        "x_dtype": "bfloat16",
        "epilogue": "plain",
        "judged_at": rows,
        "time_us": space.time(config, N, K, rows, ARCHS[arch]) if time is None else time,
        "floor_us": 1.0,
        "trials": 9,
        "source": "measured",
        "device": "Some GPU",
        "date": "2026-01-02",
    }
    return Record(arch=arch, N=N, K=K, M=M, family=family, config=config, **values | more)
