import benchmark_modules  # noqa: F401

from benchmarks import tuning_tables


def test_gain():
    row = {"shape": "8x16", "M": 4, "tuned_us": 2.0, "default_us": 3.0, "untuned_us": 2.2, "floor_us": 1.0}
    report = {"device": "Some GPU", "date": "2026-01-02", "source": "measured", "rows": [row]}
    text = tuning_tables.gain([report])
    assert "Some GPU, 2026-01-02, measured" in text and "M = 4 " in text
    assert "| 8x16 | 1.500 | 1.500 | 1.100 | 1.100 | 2.000 |" in text


def test_the_gain_of_many_shapes_is_by_rows():
    rows = [
        {"shape": f"{N}x16", "M": M, "tuned_us": 2.0, "default_us": 2.0 * (1 + N / 100), "untuned_us": 2.2}
        for N in range(20)
        for M in (1, 8)
    ]
    rows.append({"shape": "99x16", "M": 8, "tuned_us": None, "default_us": 3.0, "untuned_us": 3.0})
    report = {"device": "Some GPU", "date": "2026-01-02", "source": "measured", "rows": rows}
    lines = tuning_tables.gain([report]).splitlines()
    assert lines[0].startswith("Some GPU, 2026-01-02, measured, 21 shapes") and "over the shapes" in lines[0]
    assert [line.split(" | ")[0] for line in lines[-3:]] == ["| 1", "| 8", "| all"]
    for line in lines[-3:]:
        assert line.endswith(" | 1.190 (19x16) | 1.100 | 1.100 (9x16) |")


def test_records():
    row = {
        "shape": "8x16",
        "records": 2,
        "changes": [5, 9],
        "device": "G",
        "source": "predicted",
        "date": "D",
    }
    text = tuning_tables.records([{"arch": "sm_89", "rows": [row]}])
    assert text.startswith("sm_89: G, predicted, D.") and "| 8x16 | 2 | 5, 9 |" in text
