"""
The client's side of a channel: two rings in a sealed memfd that a VM serves (``docs/channel.md``).

Pure Python on the standard library. May import `sandboxd.errors` and `sandboxd.limits`; nothing else of the project.
The VM's side is hostile: what it writes is copied first and checked afterwards, and whatever breaks a rule is
`ChannelBroken`, never another exception.
"""
