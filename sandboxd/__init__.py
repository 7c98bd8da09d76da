"""
sandboxd: Proxy-Wasm filters of many tenants, each in a jailed process, outside the proxy.

This module only names the version; it may be imported by everybody and imports nobody.
"""

__version__ = "0.1.0"
