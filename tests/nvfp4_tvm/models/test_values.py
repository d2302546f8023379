import math

import pytest

from nvfp4_tvm.errors import NVFP4Error
from nvfp4_tvm.models.values import boolean, number, positive_integer, token_ids


def test_values_and_defaults():
    config = {"n": 3, "x": 0.5, "yes": True, "nothing": None, "one": 7, "several": [1, 2]}
    assert positive_integer(config, "n") == 3 and positive_integer(config, "nothing", 4) == 4
    assert (
        number(config, "x") == 0.5 and number(config, "n") == 3.0 and number(config, "missing", 1e-6) == 1e-6
    )
    assert boolean(config, "yes", False) and not boolean(config, "nothing", False)
    assert token_ids(config, "one") == (7,) and token_ids(config, "several") == (1, 2)
    assert token_ids(config, "nothing") == ()


@pytest.mark.parametrize("value", [0, -1, True, 2.0, "3", [4], None])
def test_no_positive_integer(value):
    with pytest.raises(NVFP4Error, match=r"^config: rope\.n is .*, expected a positive integer$"):
        positive_integer({"n": value}, "n", prefix="rope.")


@pytest.mark.parametrize("value", [math.nan, math.inf, "1", True, 0.0, -1, None])
def test_no_number_above_zero(value):
    with pytest.raises(NVFP4Error, match=r"^config: x is .*, expected a finite number above 0$"):
        number({"x": value}, "x", above=0.0)


@pytest.mark.parametrize("value", [0, 1, "true", []])
def test_no_boolean(value):
    with pytest.raises(NVFP4Error, match="expected true or false"):
        boolean({"flag": value}, "flag", False)


@pytest.mark.parametrize("value", ["2", [1, None], [True], 1.0, {}])
def test_no_token_ids(value):
    with pytest.raises(NVFP4Error, match="expected a token id, a list of token ids, or null"):
        token_ids({"eos_token_id": value}, "eos_token_id")
