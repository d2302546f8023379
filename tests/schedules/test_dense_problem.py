from tvm import tirx

from nvfp4_tvm.schedules.dense_problem import SYMBOLIC_N, DenseProblem


def test_what_it_is_of():
    M, problem = tirx.Var("M", "int64"), DenseProblem(100, 48, "float16", "float32")
    assert problem.label == "dense_100x48" and problem.out_N == 100 and problem.index_dtype == "int32"
    assert problem.operands(M) == {"x": ((M, 48), "float16"), "weight": ((100, 48), "float16")}


def test_any_number_of_rows():
    problem = DenseProblem(None, 48, "float16", "float32")
    assert problem.label == "dense_anyx48" and problem.index_dtype == "int64"
    # The same variable in the weight and in the result
    assert problem.out_N.same_as(SYMBOLIC_N) and problem.operands(3)["weight"][0][0].same_as(SYMBOLIC_N)


def test_two_to_the_31_elements_are_counted_in_64_bits():
    for N, expected in ((1 << 17, "int64"), ((1 << 17) - 1, "int32")):
        assert DenseProblem(N, 1 << 14, "float16", "float16").index_dtype == expected
