"""Processes that end at once where they would tell anybody of anything."""

import os
from pathlib import Path

ALONE = """
import os, sys, time
def hook(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.posix_spawn"):
        print("asked for", event, args, flush=True)
        os._exit(3)
sys.addaudithook(hook)
os.register_at_fork(before=lambda: os._exit(4))
"""


def outside_ci(home: Path) -> dict[str, str]:
    """An environment in which packages do tell, and an empty home."""
    return {k: v for k, v in os.environ.items() if k not in ("CI", "TF_BUILD", "JENKINS_URL")} | {"HOME": str(home)}
