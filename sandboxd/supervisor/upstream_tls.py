"""
TLS towards upstreams of callouts: always checked, by the policy's authority or the machine's.

The supervisor reads the policy's files, for they may be root's alone; the broker gets what is in them.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sandboxd import limits
from sandboxd.channel.memfd import create_blob
from sandboxd.errors import PolicyError
from sandboxd.policy.callouts import UpstreamTls
from sandboxd.policy.model import PluginPolicy
from sandboxd.protos import control_pb2 as control


@dataclass(frozen=True, slots=True)
class Material:
    """PEM texts of one upstream; empty where the policy names no file."""

    ca: bytes = b""
    certificate: bytes = b""
    key: bytes = b""

    def __repr__(self) -> str:
        return "Material(...)"  # a key has no business in a log


def client_context(material: Material) -> ssl.SSLContext:
    """
    Return a context that checks certificate and name.

    Raises:
        ssl.SSLError, ValueError: the PEM texts are not what they should be.
    """
    context = ssl.create_default_context(cadata=material.ca.decode("ascii") if material.ca else None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if material.certificate:
        # The ssl module reads a key from a file alone; one without a name, and only this process can open it.
        fd = create_blob("client", material.certificate + b"\n" + material.key)
        try:
            context.load_cert_chain(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)
    return context


def material_of(tls: UpstreamTls, files: Mapping[str, bytes]) -> Material:
    """Return what one upstream needs; a file that is missing is a KeyError."""
    return Material(*(b"" if path is None else files[str(path)] for path in (tls.ca, tls.certificate, tls.key)))


def read_files(plugin: PluginPolicy, path: str) -> dict[str, bytes]:
    """
    Read a plugin's TLS files and check that they are of use.

    Args:
        plugin: its policy.
        path: the policy file's, for errors.

    Raises:
        PolicyError: a file cannot be read, or is not what it should be.
    """
    found: dict[str, bytes] = {}
    for upstream in plugin.callouts.upstreams:
        if not upstream.scheme.is_tls:
            continue
        key = f"plugins.{plugin.name}.callouts.upstreams.{upstream.name}.tls"
        tls = upstream.tls
        for file in (tls.ca, tls.certificate, tls.key):
            if file is not None:
                found[str(file)] = _read(file, path, key)
        try:
            client_context(material_of(tls, found))
        except (ssl.SSLError, ValueError) as error:
            raise PolicyError(f"are no certificates and key in PEM: {error}", path=path, key=key) from None
    return found


def _read(file: Path, path: str, key: str) -> bytes:
    try:
        with file.open("rb") as opened:
            data = opened.read(limits.MAX_PEM_BYTES + 1)
    except OSError as error:
        raise PolicyError(f"{file} cannot be read: {error.strerror}", path=path, key=key) from None
    except ValueError as error:  # such as a NUL in it
        raise PolicyError(f"cannot be read: {error}", path=path, key=key) from None
    if len(data) > limits.MAX_PEM_BYTES:
        raise PolicyError(f"{file} is larger than {limits.MAX_PEM_BYTES} bytes", path=path, key=key)
    return data


def encode_files(files: Iterable[tuple[str, bytes]]) -> bytes:
    """Return what the broker gets."""
    message = control.EgressMaterial()
    for path, content in files:
        message.files.add(path=path, content=content)
    return message.SerializeToString()


def decode_files(data: bytes) -> dict[str, bytes]:
    """Return what `encode_files` was given."""
    return {file.path: file.content for file in control.EgressMaterial.FromString(data).files}
