"""
A tour of sandboxd behind a real Envoy: `python -m sandboxd.demo`.

Not part of the daemon: nothing in `sandboxd` imports this package. The tests borrow its Envoy and HTTP parts.
"""
