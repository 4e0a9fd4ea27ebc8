import os

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


def test_what_is_no_file_is_not_replaced(tmp_path):
    """Root can replace a device: `--output /dev/null` left a file in its place, for everyone."""
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", tmp_path):
        with pytest.raises(FileExistsError, match="that may be replaced"), written(place):
            pytest.fail("nothing is written")
    assert (tmp_path / "pipe").is_fifo()


def test_what_a_link_leads_to_is_replaced(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "link").symlink_to("one/file")
    with written(tmp_path / "link") as beside:
        beside.write_text("whole")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "one/file").read_text() == "whole"
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["file"]
