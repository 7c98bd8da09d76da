"""
What Envoy tells of a TCP connection, as Proxy-Wasm properties. Pure.

Attributes are those that the filter's ``connection_attributes`` name, in the form that HTTP's filter gives them too;
dynamic metadata of the connection come from the namespaces that its ``metadata_options`` name.
"""

from __future__ import annotations

from sandboxd.channel import pairs
from sandboxd.channel.pairs import Pair
from sandboxd.front import attributes
from sandboxd.front.side import Report
from sandboxd.policy.redact import Redactor
from sandboxd.protos import network_ext_proc_pb2 as pb


def properties(message: pb.ProcessingRequest, redactor: Redactor, report: Report) -> bytes:
    """Return the properties that the plugin may see, encoded; ``report`` is told of names that are none."""
    unknown: list[str] = []
    found: list[Pair] = []
    for struct in message.attributes.values():
        found += attributes.properties(struct.fields, redactor, unknown)
    for namespace, content in message.metadata.filter_metadata.items():
        found += attributes.metadata(namespace, content, redactor)
    for name in unknown:
        report("network_ext_proc.unknown_attribute", name)
    return pairs.encode(found)
