"""Files that are written whole or not at all."""

from __future__ import annotations

import pytest

from part_robust.utils.files import replacing, write_text


@pytest.mark.parametrize("flushed", [True, False])
def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, flushed):
    path = tmp_path / "deep" / "file.txt"
    with pytest.raises(ZeroDivisionError), replacing(path, flushed) as temporary:
        temporary.write_text("half")
        assert 1 / 0
    assert list(path.parent.iterdir()) == []
    with replacing(path, flushed) as temporary:
        temporary.write_text("old")
        assert not path.exists()
    with pytest.raises(KeyboardInterrupt), replacing(path, flushed) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert [p.read_text() for p in path.parent.iterdir()] == ["old"]
    write_text(path, "größer")
    assert path.read_bytes() == "größer".encode() and list(path.parent.iterdir()) == [path]
