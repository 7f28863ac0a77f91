"""What programs say before they end, and the kind of trouble that it tells. Pure.

Each pattern was made from a line that was really printed, which stands beside it with where it was seen. All
match from the beginning of a line: what a log says of somebody else's error in the middle of a sentence is no
symptom. How a kind is called and what one does about it is in ``causes``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Symptom:
    """One thing a program says.

    Args:
        kind: of trouble; a key of ``causes.KINDS``.
        pattern: matches from the beginning of a line, after ``[rank3]:`` if torch put that before it.
        seen: a line it was made from.
        source: where that was seen: a thread on GitHub, the program that prints it, or what was run.
        codes: exit codes of the job with which alone it counts; none: with any.
    """

    kind: str
    pattern: re.Pattern[str]
    seen: str
    source: str
    codes: tuple[int, ...] = ()


_RAISED = r"(?:[A-Za-z_][\w.]*: |error: )?"  # the class of an exception, or how hpcdl begins its own errors
SHELL_FOUND_NONE = (126, 127)
"""How a shell ends that cannot start a program, or not find it (POSIX, Shell Command Language, 2.8.2)."""

_STEP = r"(?:\d+: )?slurmstepd(?:-\S+)?: error: "  # srun puts the task before it, a step its host
_SHELL = r"\S+: line \d+: "


def _symptom(kind: str, pattern: str, seen: str, source: str, *codes: int) -> Symptom:
    return Symptom(kind, re.compile(pattern), seen, source, codes)


SYMPTOMS = (
    _symptom(
        "device memory",
        _RAISED + r"(?:CUDA|HIP) out of memory\. Tried to allocate",
        "torch.OutOfMemoryError: HIP out of memory. Tried to allocate 16.00 GiB. GPU 0 has a total "
        "capacity of 15.24 GiB of which 15.09 GiB is free.",
        "ROCm/TheRock#1054",
    ),
    _symptom(
        "device memory",
        _RAISED + r"(?:CUDA|HIP) error: (?:out of memory|CUBLAS_STATUS_ALLOC_FAILED)",
        "RuntimeError: CUDA error: out of memory",
        "pytorch/pytorch c10/cuda/CUDAException.cpp, cudaErrorMemoryAllocation",
    ),
    _symptom(
        "host memory",
        _RAISED
        + r"(?:\[enforce fail at [^\]]*\] .*)?DefaultCPUAllocator: (?:can't allocate|not enough) memory",
        "RuntimeError: [enforce fail at alloc_cpu.cpp:75] err == 0. DefaultCPUAllocator: can't allocate "
        "memory: you tried to allocate 132426121216 bytes. Error code 12 (Cannot allocate memory)",
        "mxfold/mxfold2#20",
    ),
    _symptom("host memory", r"MemoryError\b", "MemoryError", "Python, Objects/exceptions.c"),
    _symptom(
        "host memory",
        r"OSError: \[Errno 12\] Cannot allocate memory",
        "OSError: [Errno 12] Cannot allocate memory",
        "Linux, ENOMEM as Python prints it",
    ),
    _symptom(
        "host memory",
        _STEP + r"Detected \d+ oom[-_]kill event",
        "slurmstepd: error: Detected 1 oom_kill event in StepId=440575.0. Some of the step tasks have been "
        "OOM Killed.",
        "chrisknewman/tusas#149",
    ),
    _symptom(
        "host memory",
        r"srun: error: \S+: tasks? [\d,-]+: Out Of Memory",
        "srun: error: nid001277: tasks 1-3: Out Of Memory",
        "chrisknewman/tusas#149",
    ),
    _symptom(
        "host memory",
        r"=>> PBS: job killed: (?:v?mem|pv?mem) ",
        "=>> PBS: job killed: mem 59756048kb exceeded limit 20971520kb",
        "openpbs src/resmom/mom_main.c",
    ),
    _symptom(
        "walltime",
        _STEP + r"\*\*\* .* DUE TO TIME LIMIT",
        "slurmstepd: error: *** JOB 3884617 ON node023 CANCELLED AT 2018-08-19T16:30:21 DUE TO "
        "TIME LIMIT ***",
        "marbl/canu#1052",
    ),
    _symptom(
        "walltime",
        r"=>> PBS: job killed: walltime \d+ exceeded limit",
        "=>> PBS: job killed: walltime 3611 exceeded limit 3600",
        "openpbs src/resmom/mom_main.c",
    ),
    _symptom(
        "preempted",
        _STEP + r"\*\*\* .* DUE TO PREEMPTION",
        "slurmstepd: error: *** JOB 32391783 ON cn119 CANCELLED AT 2021-06-18T13:05:36 DUE TO PREEMPTION ***",
        "SystemsGenetics/GEMmaker#242",
    ),
    _symptom(
        "node lost",
        _STEP + r"\*\*\* .* DUE TO NODE FAILURE",
        "slurmstepd: error: *** STEP 1943824.0 ON jean-zay-iam17 CANCELLED AT 2023-03-06T03:17:51 DUE TO "
        "NODE FAILURE, SEE SLURMCTLD LOG FOR DETAILS ***",
        "SchedMD/slurm src/slurmd/slurmstepd/req.c",
    ),
    _symptom(
        "bad node",
        r"BadNodeError: |error: node \S+ is bad: ",
        "BadNodeError: node n2 is bad: rank 1: 1 core to run on (0), where the layout gives 2",
        "hpcdl/engine/preflight/verdict.py",
    ),
    _symptom(
        "wrong placement",
        r"PlacementError: |error: ranks are not where they should be: ",
        "PlacementError: ranks are not where they should be: on n1: 3 ranks here, and the layout puts 2 on "
        "each of 2 nodes",
        "hpcdl/engine/preflight/verdict.py",
    ),
    _symptom(
        "rank never came",
        _RAISED + r"\d+ of \d+ ranks never came within \d+ s: ",
        "error: 1 of 4 ranks never came within 60 s: 3",
        "hpcdl/engine/rendezvous.py",
    ),
    _symptom(
        "rank never came",
        _RAISED + r"rank 0 runs on \S+, whose address by the site's rule ",
        "error: rank 0 runs on n1, whose address by the site's rule (rendezvous.address: hostname, suffix: "
        ".nowhere) is 'n1.nowhere'; that name is not known there: Name or service not known",
        "hpcdl/engine/meeting.py",
    ),
    _symptom(
        "rank never came",
        _RAISED + r"rank \d+ (?:did not find rank 0 within|waited) \d+ s",
        "error: rank 2 did not find rank 0 within 60 s: rendezvous/attempt-1.json says nothing; rank 0 did "
        "not start, or the run folder is not shared",
        "hpcdl/engine/rendezvous.py",
    ),
    _symptom(
        "rank never came",
        _RAISED + r"Timed out after \d+ seconds waiting for (?:clients|workers)\. \d+/\d+",
        "torch.distributed.DistStoreError: Timed out after 1801 seconds waiting for clients. "
        "1/3 clients joined.",
        "OpenRLHF/OpenRLHF#1040",
    ),
    _symptom(
        "communication",
        r"PeerLostError: another rank did not come in time|error: another rank did not come in time",
        "error: another rank did not come in time: [gloo/transport/tcp/unbound_buffer.cc:78] Timed out "
        "waiting 5000ms for recv operation to complete",
        "hpcdl/engine/transport/dist.py",
    ),
    _symptom(
        "communication",
        r"(?:\[E.*ProcessGroupNCCL\.cpp:\d+\] )?(?:\S+: )?\[(?:PG .*)?Rank \d+\] Watchdog caught "
        r"collective operation timeout",
        "[E321 02:07:08.408271257 ProcessGroupNCCL.cpp:607] [Rank 0] Watchdog caught collective "
        "operation timeout: WorkNCCL(SeqNum=1580, OpType=ALLREDUCE, NumelIn=466119168, NumelOut=466119168, "
        "Timeout(ms)=600000) ran for 600060 milliseconds before timing out.",
        "hiyouga/LlamaFactory#7396",
    ),
    _symptom(
        "communication",
        _RAISED + r"\[\S*gloo/transport/\S+\] (?:Timed out waiting \d+ms for|Connection closed by peer)",
        "RuntimeError: [../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting "
        "1800000ms for recv operation to complete",
        "facebookincubator/gloo gloo/transport/tcp/unbound_buffer.cc",
    ),
    _symptom(
        "communication",
        r"ncclRemoteError: A call failed possibly due to a network error",
        "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting "
        "prematurely.",
        "pytorch/pytorch torch/csrc/distributed/c10d/NCCLUtils.cpp",
    ),
    _symptom(
        "hang",
        r"HangError: ",
        "HangError: stood still for 605 s after step 3, data, at /home/ada/own.py:12 in __getitem__",
        "hpcdl/engine/watchdog.py",
    ),
    _symptom(
        "hang",
        r"Timeout \(\d+:\d\d:\d\d(?:\.\d+)?\)!$",
        "Timeout (0:10:00)!",
        "Python, Modules/faulthandler.c",
    ),
    _symptom(
        "missing package",
        r"(?:ModuleNotFoundError|ImportError): |\S*python[\d.]*: No module named \S+$",
        "ImportError: libcudart.so.11.0: cannot open shared object file: No such file or directory",
        "CannyLab/tsne-cuda#126",
    ),
    _symptom(
        "missing package",
        _RAISED + r"model\.entry \S+: there is no module ",
        "error: model.entry stripes:program: there is no module stripes",
        "hpcdl/engine/program.py",
    ),
    _symptom(
        "port in use",
        r"OSError: \[Errno 98\] |(?:[A-Za-z_][\w.]*: )?The server socket has failed to listen on any local "
        r"network address\..*(?:EADDRINUSE|errno: 98)",
        "torch.distributed.DistNetworkError: The server socket has failed to listen on any local network "
        "address. The server socket has failed to bind to [::]:29500 (errno: 98 - Address already in use).",
        "meta-pytorch/torchtune#392",
    ),
    _symptom(
        "disk full",
        r"(?:OSError|IOError): \[Errno (?:28|122)\] |"
        r"[\w.]*SafetensorError: .*IoError\(Os \{ code: (?:28|122),",
        "OSError: [Errno 122] Disk quota exceeded: 'out/intermediate.ntw'",
        "KennthShang/HostG#7",
    ),
    _symptom(
        "disk full",
        _RAISED
        + r"the last checkpoint could not be written: .*(?:No space left on device|Disk quota exceeded)",
        "error: the last checkpoint could not be written: rank 0: Error while serializing: I/O error: "
        "No space left on device (os error 28)",
        "hpcdl/engine/keeping.py",
    ),
    _symptom(
        "disk full",
        _SHELL + r".*: (?:No space left on device|Disk quota exceeded)$",
        "job.sh: line 31: echo: write error: No space left on device",
        "bash, on a tmpfs without room",
    ),
    _symptom(
        "no run folder",
        _RAISED + r"\[Errno 2\] No such file or directory: '.*/metrics/rank-\d{5}\.jsonl'",
        "FileNotFoundError: [Errno 2] No such file or directory: '/runs/one/metrics/rank-00000.jsonl'",
        "Python, on a run folder that was renamed under it",
    ),
    _symptom(
        "not finite",
        _RAISED + r"the (?:loss|squared gradient norm) became -?(?:nan|inf)\b",
        "error: the loss became nan in step 3, on rank 0",
        "hpcdl/engine/update.py",
    ),
    _symptom(
        "not finite",
        _RAISED
        + r"(?:Loss became infinite or NaN|Function '\w+' returned nan values|Rank \d+: found NaN in)",
        "AssertionError: Rank 13: found NaN in local grad norm in backward pass before data-parallel "
        "communication collective. Device: 5, node: node-15-11",
        "NVIDIA/Megatron-LM megatron/core/distributed/param_and_grad_buffer.py",
    ),
    _symptom(
        "bad device",
        _RAISED
        + r"(?:CUDA|HIP) error: (?:an illegal memory access|uncorrectable (?:ECC|NVLink) error|unspecified "
        r"launch failure|no CUDA-capable device)",
        "RuntimeError: CUDA error: uncorrectable NVLink error detected during the execution",
        "MIC-DKFZ/nnUNet#1519",
    ),
    _symptom(
        "bad device",
        _RAISED
        + r"(?:No CUDA GPUs are available|No HIP GPUs are available|rank \d+ needs CUDA device \d+ on )",
        "RuntimeError: No CUDA GPUs are available",
        "NJUNLP/MORE#2",
    ),
    _symptom(
        "bad device",
        r"(?:\[ *[\d.]+\] )?NVRM: Xid \(PCI:",
        "NVRM: Xid (PCI:0000:44:00): 79, GPU has fallen off the bus",
        "NVIDIA/NVSentinel#155",
    ),
    _symptom(
        "program not found",
        _SHELL + r"\S+: (?:No such file or directory|command not found|Permission denied|cannot execute.*)$",
        "job.sh: line 12: /opt/env/bin/python: No such file or directory",
        "bash 5.2",
        *SHELL_FOUND_NONE,
    ),
    _symptom(
        "program not found",
        _STEP + r"execve\(\): \S+: ",
        "slurmstepd: error: execve(): torchrun: No such file or directory",
        "CSCfi/pytorch-ddp-examples#1",
    ),
    _symptom(
        "program not found",
        _RAISED + r"command: (?:there is no program |\S+ cannot be started |\S+ is a folder )",
        "error: command: there is no program 'python' on n1 on PATH: /usr/bin:/bin",
        "hpcdl/engine/child.py",
    ),
    _symptom(
        "program not found",
        r"SyntaxError: future feature annotations is not defined",
        "SyntaxError: future feature annotations is not defined",
        "Python 3.6 on a program for a newer one",
    ),
    _symptom(
        "crash",
        r"Fatal Python error: (?:Segmentation fault|Bus error|Illegal instruction)",
        "Fatal Python error: Segmentation fault",
        "Python, Modules/faulthandler.c",
    ),
    _symptom(
        "crash",
        r"srun: error: \S+: tasks? [\d,-]+: (?:Segmentation fault|Bus error|Illegal instruction)",
        "srun: error: node12: task 0: Segmentation fault (core dumped)",
        "JIA-Lab-research/Stratified-Transformer#3",
    ),
    _symptom(
        "crash",
        _SHELL + r" *\d+ (?:Segmentation fault|Bus error|Illegal instruction)",
        "job.sh: line 1: 28417 Segmentation fault      python -m hpcdl.engine /runs/one",
        "bash 5.2",
    ),
)
