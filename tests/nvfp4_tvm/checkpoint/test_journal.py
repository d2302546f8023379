from nvfp4_tvm.checkpoint.journal import Journal


def test_what_was_added_is_found_again(tmp_path):
    first = Journal(tmp_path / "journal", "key")
    first.add("a", "0")
    first.add("b", "1")
    again = Journal(tmp_path / "journal", "key")
    assert not first.resumed and again.resumed and again.done == {"a": "0", "b": "1"}
    assert Journal(tmp_path / "journal", "other").done == {}
    again.remove()
    assert not list(tmp_path.iterdir())


def test_a_torn_line_is_left_out_and_does_not_spoil_the_next(tmp_path):
    path = tmp_path / "journal"
    Journal(path, "key").add("a", "0")
    with path.open("a") as file:
        file.write('{"name": "b", "dig')
    Journal(path, "key").add("c", "2")
    assert Journal(path, "key").done == {"a": "0", "c": "2"}
