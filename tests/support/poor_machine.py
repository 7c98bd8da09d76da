"""
The daemon with fake fronts on a machine that lacks something: ``python poor_machine.py CONFIG``.

``LACKS`` in the environment: kinds of namespaces, or ``landlock``.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace

from sandboxd.jail import jailer
from sandboxd.jail.facts import MachineFacts, read_facts
from tests.support import fake_daemon


def poor_facts() -> MachineFacts:
    """Return this machine's facts without what it shall lack."""
    facts = read_facts()
    for name in os.environ["LACKS"].split(","):
        if name == "landlock":
            facts = replace(facts, landlock_abi=0)
        else:
            assert name in facts.namespaces
            facts = replace(facts, namespaces={**facts.namespaces, name: "a test says so"})
    return facts


if __name__ == "__main__":
    jailer.machine_facts = poor_facts
    sys.exit(fake_daemon.main(sys.argv[1]))
