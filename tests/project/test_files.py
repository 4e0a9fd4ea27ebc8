import pytest

from nlhf_zoo.files import written


def test_a_file_is_there_whole_or_as_it_was(tmp_path):
    path = tmp_path / "file.txt"
    with written(path) as beside:
        beside.write_text("one")
        assert not path.exists()
    assert path.read_text() == "one"
    with pytest.raises(ZeroDivisionError), written(path) as beside:
        beside.write_text(f"tw{1 / 0}")
    with pytest.raises(FileNotFoundError), written(path):  # nothing was written
        pass
    assert path.read_text() == "one"
    assert [*tmp_path.iterdir()] == [path]  # nothing is left beside it
