"""One rank of a run on a node of a name of its own, perhaps a slow one; all nodes are this machine.

``python as_node.py RUN_FOLDER``, with HPCDL_TEST_EACH ranks a node. On the node HPCDL_TEST_SLOW every matrix
product takes HPCDL_TEST_S (a tenth of a second) more, or, with HPCDL_TEST_AT=link, every all-reduce with others half a second.
"""

import os
import time

import torch

from hpcdl.engine.__main__ import main
from hpcdl.engine.transport.dist import DistTransport

_RANK = int(os.environ.get("RANK") or os.environ["PMI_RANK"])
_HOST = f"n{_RANK // int(os.environ['HPCDL_TEST_EACH'])}"


def slow_products():
    real = torch.mm

    def late(*operands, **options):
        time.sleep(float(os.environ.get("HPCDL_TEST_S", "0.1")))
        return real(*operands, **options)

    torch.mm = late


def slow_links():
    real = DistTransport.all_reduce

    def late(self, tensor, group, *rest):
        time.sleep(0.5 if len(group.ranks) > 1 else 0)
        return real(self, tensor, group, *rest)

    DistTransport.all_reduce = late


if __name__ == "__main__":
    os.environ["SLURMD_NODENAME"] = _HOST
    if os.environ.get("HPCDL_TEST_SLOW") == _HOST:
        slow_links() if os.environ.get("HPCDL_TEST_AT") == "link" else slow_products()
    main()
