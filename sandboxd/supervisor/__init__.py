"""
The supervisor: the one process that starts, watches and replaces all others.

It imports neither gRPC nor the Wasm engine. What a worker tells it is parsed as hostile (`worker_protocol`);
what a front tells it is trusted. See ``docs/processes.md``.
"""
