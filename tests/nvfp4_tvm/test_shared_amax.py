import numpy as np
import pytest

from nvfp4_tvm.errors import NVFP4Error
from nvfp4_tvm.shared_amax import SharedAmax, fused_groups

MODULES = [
    f"model.layers.{layer}.{part}" for layer in (0, 1) for part in ("q_proj", "k_proj", "v_proj", "o_proj")
]
VALUES = {f"{module}.weight": float(value) for value, module in enumerate(MODULES, 1)}
TENSORS = {module: f"{module}.weight" for module in MODULES}


class Reads:
    def __init__(self):
        self.read, self.released = [], []

    def __call__(self, name):
        self.read.append(name)
        return np.full((2, 2, 16), -VALUES[name], np.float32)  # as the experts of a layer


def test_fused_parts_share_the_largest_of_their_block():
    shared = SharedAmax(TENSORS, Reads())
    assert [shared(module) for module in MODULES] == [3, 3, 3, 4, 7, 7, 7, 8]


def test_without_sharing_each_has_its_own():
    shared = SharedAmax(TENSORS, Reads(), share=False)
    assert [shared(module) for module in MODULES] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_weight_is_looked_at_once_and_another_s_is_released():
    reads = Reads()
    shared = SharedAmax(TENSORS, reads, reads.released.append)
    for module in MODULES:
        shared(module)
    assert sorted(reads.read) == sorted(VALUES)
    assert reads.released == [
        f"model.layers.{layer}.{part}.weight" for layer in (0, 1) for part in ("k_proj", "v_proj")
    ]


def test_parts_that_are_not_quantized_decide_over_nothing():
    tensors = {module: name for module, name in TENSORS.items() if "v_proj" not in module}
    assert SharedAmax(tensors, Reads())(MODULES[0]) == 2
    assert fused_groups(tensors)[MODULES[0]] == (MODULES[0], MODULES[1])


@pytest.mark.parametrize("names", [("w1", "w3"), ("gate_proj", "up_proj")])
def test_gate_and_up_by_either_name(names):
    gate, up = (f"experts.0.{name}" for name in names)
    assert fused_groups([gate, up, "experts.0.w2"]) == {gate: (gate, up), up: (gate, up)}


def test_a_weight_without_a_magnitude_is_named():
    shared = SharedAmax({"a.q_proj": "a.q_proj.weight"}, lambda name: np.full((1, 16), np.nan, np.float32))
    with pytest.raises(NVFP4Error, match=r"a\.q_proj\.weight"):
        shared("a.q_proj")
