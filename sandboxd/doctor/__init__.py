"""Which isolation layers are live on this machine, each proven by trying to break it."""
