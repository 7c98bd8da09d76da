"""Deeds of a worker that was taken over, in the folders of its plugin; see `tests.support.hostile_worker`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from sandboxd.channel.ring import Record
from sandboxd.protos import control_pb2 as control
from sandboxd.worker.control import ControlSocket
from tests.support.fake_vm import Event, pass_through

READ, WRITE = 0, 1
"""The folders of the policy, in its order."""
CREATE, WRITE_BYTES, RENAME = 1, 2, 7


class _Worker(Protocol):
    _socket: ControlSocket
    _vm_ids: list[int]


class FileDeeds:
    """What it says of folders; mixed into the worker."""

    def _say(self: _Worker, *changes: control.FileChange) -> None:
        self._socket.send(file_changes=control.FileChanges(vm_id=self._vm_ids[0], changes=changes))

    def _write(self: _Worker, path: bytes, folder: int = WRITE) -> None:
        FileDeeds._say(
            self,
            control.FileChange(folder=folder, kind=CREATE, path=path),
            control.FileChange(folder=folder, kind=WRITE_BYTES, path=path, other=b"escaped"),
        )

    def file_twin(self: _Worker, event: Event) -> Iterable[Record]:
        """Writes where its plugin may."""
        FileDeeds._write(self, b"mine")
        return pass_through(event)

    def file_above(self: _Worker, event: Event) -> Iterable[Record]:
        """A path that leads out."""
        FileDeeds._write(self, b"../outside")
        return pass_through(event)

    def file_absolute(self: _Worker, event: Event) -> Iterable[Record]:
        """A path of the machine's."""
        FileDeeds._write(self, b"/tmp/outside")
        return pass_through(event)

    def file_moved_out(self: _Worker, event: Event) -> Iterable[Record]:
        """Its own file, to a place outside."""
        FileDeeds._write(self, b"mine")
        FileDeeds._say(self, control.FileChange(folder=WRITE, kind=RENAME, path=b"mine", other=b"../outside"))
        return pass_through(event)

    def file_read_only(self: _Worker, event: Event) -> Iterable[Record]:
        """In the folder that it may read."""
        FileDeeds._write(self, b"outside", READ)
        return pass_through(event)

    def file_no_folder(self: _Worker, event: Event) -> Iterable[Record]:
        """In one that its policy does not name."""
        FileDeeds._write(self, b"outside", 2)
        return pass_through(event)

    def file_link(self: _Worker, event: Event) -> Iterable[Record]:
        """Through links that lie in its folder: a path that an honest worker may name."""
        FileDeeds._write(self, b"link")
        FileDeeds._write(self, b"folder/outside")
        return pass_through(event)

    def file_quota(self: _Worker, event: Event) -> Iterable[Record]:
        """More files, and more bytes, than the policy allows."""
        for number in range(100):
            FileDeeds._write(self, b"many-%d" % number)
        whole = [
            control.FileChange(folder=WRITE, kind=WRITE_BYTES, path=b"many-0", other=bytes(30_000), size=at)
            for at in range(0, 300_000, 30_000)
        ]
        for change in whole:
            FileDeeds._say(self, change)
        return pass_through(event)
