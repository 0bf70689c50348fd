"""FileWatch against real files."""

from __future__ import annotations

from pathlib import Path

from textmatch.runtime.file_watch import FileWatch


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_change_is_told_once(tmp_path: Path):
    file = tmp_path / "keys"
    file.write_text("one")
    watch = FileWatch([file])
    assert not watch.has_changed()
    file.write_text("three")
    assert watch.has_changed()
    assert not watch.has_changed()


def test_a_replaced_a_removed_and_a_returning_file_are_changes(tmp_path: Path):
    file, other = tmp_path / "keys", tmp_path / "other"
    file.write_text("one")
    other.write_text("two")
    watch = FileWatch([file])
    other.replace(file)
    assert watch.has_changed()
    file.unlink()
    assert watch.has_changed()
    file.write_text("two")
    assert watch.has_changed()


def test_a_link_that_points_elsewhere_is_a_change(tmp_path: Path):
    for name in ("one", "two"):
        (tmp_path / name).write_text("the same")
    link = tmp_path / "link"
    link.symlink_to("one")
    watch = FileWatch([link])
    (tmp_path / "next").symlink_to("two")
    (tmp_path / "next").replace(link)
    assert watch.has_changed()


def test_files_are_checked_no_more_often_than_asked(tmp_path: Path):
    clock = Clock()
    file = tmp_path / "keys"
    file.write_text("one")
    watch = FileWatch([file], check_seconds=1.0, clock=clock)
    file.write_text("three")
    clock.now = 0.9
    assert not watch.has_changed()
    clock.now = 1.0
    assert watch.has_changed()
