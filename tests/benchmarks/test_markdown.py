import benchmark_modules  # noqa: F401

from benchmarks.markdown import markdown_table


def test_the_first_column_is_text_and_others_are_numbers():
    table = markdown_table(["", "ms"], [["a layer", "1.5"], ["another", ""]])
    assert table == "|  | ms |\n| :-- | --: |\n| a layer | 1.5 |\n| another |  |\n"
