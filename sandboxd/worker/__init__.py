"""
The worker: one tenant's virtual machines in a jailed process, one thread each.

Hostile once it has read a tenant's bytes. Imports nothing of the trusted side: no gRPC, no policy, no
supervisor.
"""
