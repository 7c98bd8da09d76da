"""Generated from ``proto/``; regenerate with ``make generate``, never edit."""
