import pytest
from tvm import relax, tirx
from tvm.relax.frontend import nn

from nvfp4_tvm.mlc import compat


class OldVar:
    """A variable of TVM before 0.27."""

    name_hint = "seq_len"


def test_names_of_variables_of_either_tvm():
    assert compat.var_name(tirx.Var("batch_size", "int64")) == "batch_size"
    assert compat.var_name(OldVar()) == "seq_len"


@pytest.mark.parametrize(
    ("extent", "expected"), [(7, 7), (tirx.IntImm("int64", 9), 9), (tirx.Var("n", "int64"), None)]
)
def test_constants(extent, expected):
    found = compat.constant(extent)
    assert found == expected and type(found) in (int, type(None))


def test_an_expression_becomes_a_tensor_of_the_frontend():
    class Twice(nn.Module):
        def forward(self, x: nn.Tensor):
            return compat.tensor(relax.op.add(x._expr, x._expr), "twice")

    mod, _ = Twice().export_tvm(spec={"forward": {"x": nn.spec.Tensor([2, "n"], "float32")}})
    text = mod["forward"].script()
    assert "R.add(x, x)" in text and "twice" in text
