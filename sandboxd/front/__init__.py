"""
The front processes: gRPC servers that proxies talk to.

Trusted. What comes from a proxy is checked (`sandboxd.errors.PeerError`), what comes from a worker is checked again.
Hidden data is taken out here, before anything reaches a channel. May import policy, channel and protos, and the
frames of the supervisor; never wasmtime.
"""
