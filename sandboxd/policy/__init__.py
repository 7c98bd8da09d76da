"""
Policies: what a tenant may see, do and consume, and the pure decisions that follow from it.

Pure but for `load`, which reads files. May import `sandboxd.errors`, `sandboxd.limits`,
`sandboxd.yaml_compose` and `sandboxd.yaml_nodes`; nothing else of the project.
"""
