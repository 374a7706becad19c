"""Who a task is, and what that allows: credentials(7), capabilities(7), as Linux 6.6 judges (kernel/cred.c).

A `Credentials` never changes: a call that alters an identity gives its task another one, so tasks share them
freely. There is one user namespace. No file lends out an identity: everything is mounted nosuid, and files
have no capabilities.
"""

from __future__ import annotations

import os
import stat as modes
from collections.abc import Iterator
from contextlib import contextmanager

from aether_emu.records import dataclass

(
    CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP, LINUX_IMMUTABLE,
    NET_BIND_SERVICE, NET_BROADCAST, NET_ADMIN, NET_RAW, IPC_LOCK, IPC_OWNER, SYS_MODULE, SYS_RAWIO,
    SYS_CHROOT, SYS_PTRACE, SYS_PACCT, SYS_ADMIN, SYS_BOOT, SYS_NICE, SYS_RESOURCE,
) = range(25)  # fmt: skip
MKNOD, SYSLOG, CHECKPOINT_RESTORE = 27, 34, 40
EVERY = (1 << CHECKPOINT_RESTORE + 1) - 1
"""All capabilities that there are."""
_OF_FILES = sum(
    1 << n for n in (CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, LINUX_IMMUTABLE, 32, MKNOD)
)
NOROOT, NO_SETUID_FIXUP, KEEP_CAPS, NO_CAP_AMBIENT_RAISE = 1, 4, 16, 64
ALL_BITS, ALL_LOCKS = 0x55, 0xAA
"""The securebits, and the locks of each."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """Identities of a task, real, effective, saved and for files; its groups; its sets of capabilities."""

    uid: int
    euid: int
    suid: int
    fsuid: int
    gid: int
    egid: int
    sgid: int
    fsgid: int
    groups: tuple[int, ...]
    permitted: int
    effective: int
    inheritable: int = 0
    bounding: int = EVERY
    ambient: int = 0
    securebits: int = 0

    def has(self, capability: int) -> bool:
        """Whether the capability is effective."""
        return bool(self.effective >> capability & 1)

    def in_group(self, gid: int) -> bool:
        """Whether files of this group are its group's."""
        return gid == self.fsgid or gid in self.groups

    def permits(self, mode: int, owner: int, group: int, wanted: int) -> bool:
        """Whether a file allows `wanted` (R_OK, W_OK, X_OK): Linux generic_permission."""
        shift = 6 if self.fsuid == owner else 3 if self.in_group(group) else 0
        granted, wanted = mode >> shift, wanted & 7
        if not wanted & ~granted:
            return True
        if modes.S_ISDIR(mode):
            return self.has(DAC_OVERRIDE) or (not wanted & os.W_OK and self.has(DAC_READ_SEARCH))
        if wanted == os.R_OK and self.has(DAC_READ_SEARCH):
            return True
        return self.has(DAC_OVERRIDE) and (not wanted & os.X_OK or bool(mode & 0o111))

    def owns(self, owner: int) -> bool:
        """Whether it may do what a file's owner may (inode_owner_or_capable)."""
        return self.fsuid == owner or self.has(FOWNER)

    def may_lend_group(self, gid: int) -> bool:
        """Whether it may make a file of this group set-group-id."""
        return self.in_group(gid) or self.has(FSETID)

    def may_signal(self, other: Credentials) -> bool:
        """kill_ok_by_cred."""
        return bool({self.euid, self.uid} & {other.suid, other.uid}) or self.has(KILL)

    def may_inspect(self, other: Credentials, *, dumpable: bool, real: bool = False) -> bool:
        """Whether it may look into a process of `other`: __ptrace_may_access.

        `real` for PTRACE_MODE_REALCREDS, else PTRACE_MODE_FSCREDS.
        """
        uid, gid = (self.uid, self.gid) if real else (self.fsuid, self.fsgid)
        same = _are(uid, gid, other)
        traces = self.has(SYS_PTRACE)
        able = self.permitted if real else self.effective
        return (same or traces) and (dumpable or traces) and (not other.permitted & ~able or traces)

    def is_all_of(self, other: Credentials) -> bool:
        """Whether its real user and group are every one that `other` has."""
        return _are(self.uid, self.gid, other)

    # ---- changing

    def but(self, **changes: int | tuple[int, ...]) -> Credentials:
        """The same, but for these."""
        kept = {name: getattr(self, name) for name in self.__slots__}
        return Credentials(**kept | changes)

    def become(self, **identities: int) -> Credentials:
        """After setuid(2) and its relatives: capabilities follow the user, `cap_emulate_setxuid`."""
        new = self.but(**identities)
        if self.securebits & NO_SETUID_FIXUP:
            return new
        permitted, effective, ambient = self.permitted, self.effective, self.ambient
        if 0 in (self.uid, self.euid, self.suid) and 0 not in (new.uid, new.euid, new.suid):
            if not self.securebits & KEEP_CAPS:
                permitted = effective = 0
            ambient = 0
        if not self.euid and new.euid:
            effective = 0
        elif self.euid and not new.euid:
            effective = permitted
        return new.but(permitted=permitted, effective=effective, ambient=ambient)

    def for_files_as(self, fsuid: int) -> Credentials:
        """After setfsuid(2)."""
        effective = self.effective
        if not self.securebits & NO_SETUID_FIXUP:
            if not self.fsuid and fsuid:
                effective &= ~_OF_FILES
            elif self.fsuid and not fsuid:
                effective |= self.permitted & _OF_FILES
        return self.but(fsuid=fsuid, effective=effective)

    def for_access(self) -> Credentials:
        """Who access(2) asks for: the real user, with what root may if it is root (access_override_creds)."""
        if self.fsuid == self.uid and self.fsgid == self.gid and self.effective == self._of_real_user():
            return self
        return self.but(fsuid=self.uid, fsgid=self.gid, effective=self._of_real_user())

    def _of_real_user(self) -> int:
        if self.securebits & NO_SETUID_FIXUP:
            return self.effective
        return 0 if self.uid else self.permitted

    def executed(self) -> Credentials:
        """After execve(2) of a file that lends nothing out (cap_bprm_creds_from_file)."""
        permitted = effective = self.ambient
        if not self.securebits & NOROOT and 0 in (self.uid, self.euid):
            permitted |= self.bounding | self.inheritable
            effective = effective if self.euid else permitted
        return self.but(
            suid=self.euid,
            fsuid=self.euid,
            sgid=self.egid,
            fsgid=self.egid,
            permitted=permitted,
            effective=effective,
            securebits=self.securebits & ~KEEP_CAPS,
        )

    @property
    def is_secure(self) -> bool:
        """What a program is told at its start (AT_SECURE): it has rights that who started it may not have."""
        return self.uid != self.euid or self.gid != self.egid

    def lends_rights(self, before: Credentials) -> bool:
        """Whether the change from `before` makes memory private to root (commit_creds)."""
        changed = (before.euid, before.egid, before.fsuid, before.fsgid)
        return changed != (self.euid, self.egid, self.fsuid, self.fsgid) or bool(
            self.permitted & ~before.permitted
        )


def _are(uid: int, gid: int, who: Credentials) -> bool:
    return {uid} == {who.uid, who.euid, who.suid} and {gid} == {who.gid, who.egid, who.sgid}


def of_user(uid: int, gid: int) -> Credentials:
    """A user's credentials at the start: the superuser has every capability."""
    capabilities = 0 if uid else EVERY
    identities = (uid,) * 4 + (gid,) * 4
    return Credentials(*identities, (gid,), capabilities, capabilities)


@dataclass
class Actor:
    """Whose rights count at this moment: those of the task on the CPU (Linux: current_cred)."""

    credentials: Credentials

    @contextmanager
    def as_root(self) -> Iterator[None]:
        """By the superuser's for a while: the machine itself looks for files."""
        before = self.credentials
        self.credentials = of_user(0, 0)
        try:
            yield
        finally:
            self.credentials = before
