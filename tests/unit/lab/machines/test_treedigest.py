# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The listing of a tree tells apart everything that a copy can get wrong."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.treedigest import compare, read_tree, tree_digest
from lab.workloads import files

pytestmark = pytest.mark.root


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "dir").mkdir(parents=True)
    (root / "dir/file").write_bytes(b"content")
    (root / "dir/hard").hardlink_to(root / "dir/file")
    (root / "dir/alone").write_bytes(b"content")
    (root / "link").symlink_to("dir/file")
    os.mknod(root / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mkfifo(root / "fifo")
    (root / os.fsdecode(b"odd-\xff")).write_bytes(b"")
    return root


def copy(tree: Path) -> Path:
    target = tree.with_name("copy")
    subprocess.run(["cp", "-a", str(tree), str(target)], check=True)
    return target


def test_copy_that_keeps_everything_is_the_same(tree: Path) -> None:
    target = copy(tree)
    assert list(compare(read_tree(tree), read_tree(target))) == []
    assert tree_digest(read_tree(tree)) == tree_digest(read_tree(target))


def break_hard_link(root: Path) -> None:
    status = (root / "dir/hard").stat()
    (root / "dir/hard").unlink()
    (root / "dir/hard").write_bytes(b"content")
    os.utime(root / "dir/hard", ns=(0, status.st_mtime_ns))
    os.utime(root / "dir", ns=(0, root.with_name("tree").joinpath("dir").stat().st_mtime_ns))


@pytest.mark.parametrize(
    ("path", "change", "what"),
    [
        (b"dir/alone", lambda root: (root / "dir/alone").chmod(0o600), "mode"),
        (b"dir/alone", lambda root: (root / "dir/alone").chmod(0o4644), "mode"),
        (b"dir/alone", lambda root: os.chown(root / "dir/alone", 5, -1), "uid"),
        (b"dir/alone", lambda root: os.chown(root / "dir/alone", -1, 5), "gid"),
        (b"dir/alone", lambda root: os.utime(root / "dir/alone", ns=(0, 1)), "mtime_ns"),
        (b"dir/alone", lambda root: os.setxattr(root / "dir/alone", "user.note", b"1"), "xattrs"),
        (b"dir/alone", lambda root: os.setxattr(root / "dir/alone", "system.posix_acl_access", files.acl()), "xattrs"),
        (b"link", lambda root: os.lchown(root / "link", 5, 5), "uid"),
        (b"fifo", lambda root: (root / "fifo").unlink(), "is only in the first tree"),
        (b"new", lambda root: os.mkfifo(root / "new"), "is only in the second tree"),
        (b"dir/hard", break_hard_link, "same_file_as"),
    ],
)
def test_each_kind_of_difference_is_found(tree: Path, path: bytes, change: Callable[[Path], None], what: str) -> None:
    target = copy(tree)
    change(target)
    found = {difference.path: difference.what for difference in compare(read_tree(tree), read_tree(target))}
    assert what in found[path]
    assert tree_digest(read_tree(tree)) != tree_digest(read_tree(target))


def test_one_changed_byte_of_the_same_size_and_time_is_found(tree: Path) -> None:
    target = copy(tree)
    status = (target / "dir/alone").stat()
    (target / "dir/alone").write_bytes(b"cOntent")
    os.utime(target / "dir/alone", ns=(0, status.st_mtime_ns))
    assert [d.path for d in compare(read_tree(tree), read_tree(target))] == [b"dir/alone"]


def test_excluded_paths_are_left_out_with_all_below(tree: Path) -> None:
    paths = [entry.path for entry in read_tree(tree, ["/dir", "fifo"])]
    assert paths == [b"device", b"link", b"odd-\xff"]


def test_files_workload_has_everything_a_copy_can_get_wrong(tmp_path: Path) -> None:
    files.seed(tmp_path, directories=10)
    entries = list(read_tree(tmp_path))
    assert len(entries) > 1_000
    kinds = {entry.kind for entry in entries}
    assert kinds == {"file", "directory", "symlink", "character device", "block device", "fifo", "socket"}
    names = {name for entry in entries for name, _ in entry.xattrs}
    assert {"user.origin", "security.capability", "system.posix_acl_access", "system.posix_acl_default"} <= names
    assert sum(1 for entry in entries if entry.same_file_as) >= 400
    assert any(entry.kind == "file" and entry.size > 512 * entry.blocks for entry in entries)
    with pytest.raises(UnicodeDecodeError):
        b"".join(entry.path for entry in entries).decode()
