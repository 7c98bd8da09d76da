"""The jail: what keeps a worker that has been taken over from everything outside it. See docs/security.md."""
