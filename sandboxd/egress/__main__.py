"""``python -m sandboxd.egress FD``: the broker on an inherited control socket, as tests start it."""

import sys

from sandboxd.egress.broker import main

main(int(sys.argv[1]))
