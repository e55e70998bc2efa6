"""``python -m sidecar.worker ORDERS EVENTS BOARD LEDGER``: the hot process. Started by the control process, and by nobody else.

The numbers are descriptors that it inherited; the configuration comes on standard input.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys

from sidecar.clock import SystemClock
from sidecar.config import Config
from sidecar.log import Level, Log
from sidecar.worker.build import Ends, Parts, build


def main() -> int:
    for number in (signal.SIGINT, signal.SIGTERM):  # the control process drains, and tells us when to end
        signal.signal(number, signal.SIG_IGN)
    orders, events, board, ledger = map(int, sys.argv[1:])
    config = Config.model_validate_json(sys.stdin.buffer.read())
    clock = SystemClock()
    log = Log(clock, Level[config.log.level], config.log.lines_per_s)
    ends = Ends(socket.socket(fileno=orders), socket.socket(fileno=events), board, ledger)
    worker = build(config, clock, log, ends, Parts(), process=True)
    gc.collect()
    gc.freeze()
    gc.disable()  # a full collection costs 100 ms; the loop collects where nobody waits
    worker.run()
    sys.stderr.flush()
    os._exit(0)  # views of shared memory are the system's to clean up, not the interpreter's


if __name__ == "__main__":
    raise SystemExit(main())
