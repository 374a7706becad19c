"""Where tasks stand in the tree of names: working directory, root and umask, shared by CLONE_FS."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aether_emu.linux.files.directory import Located


class Standing:
    """What Linux calls a task's fs_struct.

    `root` is None where it is the guest's own /. `users` counts the `Files` that have it.
    """

    def __init__(self, cwd: Located, mask: int, root: Located | None = None) -> None:
        self.cwd, self.mask, self.root = cwd, mask, root
        self.users = 1
        for place in (cwd, root):
            if place is not None:
                place.hold()

    def copy(self) -> Standing:
        """The same, on its own."""
        return Standing(self.cwd, self.mask, self.root)

    def stand_in(self, cwd: Located) -> None:
        """chdir(2)."""
        cwd.hold()
        self.cwd.let_go()
        self.cwd = cwd

    def begin_at(self, root: Located | None) -> None:
        """chroot(2)."""
        if root is not None:
            root.hold()
        if self.root is not None:
            self.root.let_go()
        self.root = root

    def leave(self) -> None:
        """One user fewer; with the last one the directories are let go of."""
        self.users -= 1
        if not self.users:
            self.cwd.let_go()
            if self.root is not None:
                self.root.let_go()
