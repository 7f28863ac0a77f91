"""pbsdsh of the stand-in for PBS: one task a line of the node file, each in a session and a short environment.

As recorded: the exit code is 0 whatever the tasks did; what they exited with is printed at the end. What TERM does
to it was not recorded; this one dies of it and tells its tasks nothing, which is the worst.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_KEPT = ("HOME", "NCPUS", "OMP_NUM_THREADS", "ENVIRONMENT", "STANDIN_PBS")


def environment(host: int, task: int) -> dict[str, str]:
    """Of a task: nothing that the script exported; the node file only on other hosts than the first."""
    kept = {name: os.environ[name] for name in _KEPT}
    kept |= {name: value for name, value in os.environ.items() if name.startswith("PBS_")}
    kept |= {"PATH": "/bin:/usr/bin", "PBS_NODENUM": str(host), "PBS_TASKNUM": f"{host * 2:X}{task:07X}"}
    if host == 0:
        del kept["PBS_NODEFILE"]
    return kept


def main() -> None:
    command = sys.argv[sys.argv.index("--") + 1 :]
    lines = Path(os.environ["PBS_NODEFILE"]).read_text().split()
    hosts = list(dict.fromkeys(lines))
    tasks = [
        subprocess.Popen(
            command, env=environment(hosts.index(host), number), cwd=os.environ["HOME"],
            stdin=subprocess.DEVNULL, start_new_session=True,
        )
        for number, host in enumerate(lines)
    ]  # fmt: skip
    sessions = Path(os.environ["STANDIN_PBS"]) / "aux" / f"{os.environ['PBS_JOBID']}.tasks"
    pairs = zip(lines, tasks, strict=True)
    sessions.write_text("".join(f"{hosts.index(host)} {task.pid}\n" for host, task in pairs))
    codes = [task.wait() for task in tasks]
    for number, code in enumerate(codes):
        if code:
            sys.stdout.write(f"pbsdsh: task 0x{number:08X} exit status {code}\n")


main()
