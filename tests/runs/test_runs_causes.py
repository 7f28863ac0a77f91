"""Why an attempt failed is told from real words, and not from innocent ones that resemble them."""

import re
from signal import SIGKILL, SIGSEGV, SIGTERM

import pytest

from hpcdl.runs.failures.causes import KINDS, Clues, cause_of
from hpcdl.runs.failures.symptoms import SYMPTOMS
from hpcdl.runs.record import Attempt, RunState
from hpcdl.sites.site import Site
from hpcdl.spec.experiment import Experiment
from hpcdl.telemetry import ExitRecord

FAILED = Attempt(1, "7", RunState.FAILED, 1)


def ended(rank=1, code=1, signal=None, exception=None, reason=None):
    return ExitRecord(rank, f"n{rank}", 1.0, code, signal, exception, reason)


def kind_of(*lines, attempt=FAILED, culprit=None, **others):
    """The kind of cause that the log of a rank tells which chose its exit code itself."""
    cause = cause_of(Clues(attempt, culprit or ended(), log=lines, **others))
    return cause and cause.kind


def counted(symptom):
    code = symptom.codes[0] if symptom.codes else 1
    return Attempt(1, "7", RunState.FAILED, code)


@pytest.mark.parametrize("symptom", SYMPTOMS, ids=lambda each: each.seen[:40])
def test_each_line_that_was_really_printed_tells_its_kind(symptom):
    attempt = counted(symptom)
    for lines in ([symptom.seen], ["step 1  loss 3.2", symptom.seen, ""], [f"[rank3]: {symptom.seen}"]):
        assert kind_of(*lines, attempt=attempt) == symptom.kind
    told = cause_of(Clues(attempt, job_log=[symptom.seen]))
    assert told.kind == symptom.kind
    assert symptom.seen[:100] in told.words
    assert told.advice == KINDS[symptom.kind].advice


@pytest.mark.parametrize("symptom", SYMPTOMS, ids=lambda each: each.seen[:40])
def test_the_same_words_quoted_by_somebody_tell_nothing(symptom):
    attempt = counted(symptom)
    assert kind_of(f"caught {symptom.seen}; going on", attempt=attempt) is None
    assert kind_of(f"    raise RuntimeError('{symptom.seen}')", attempt=attempt) is None
    assert kind_of(f"2026-11-22 01:00:00 WARNING: {symptom.seen}", attempt=attempt) is None


# What torch 2.4 prints on a rank whose microbatch is too large (pytorch/pytorch#16417 has the last line).
OUT_OF_MEMORY = """\
[rank0]: Traceback (most recent call last):
[rank0]:   File "/work/train.py", line 61, in <module>
[rank0]:     loss = model(batch)
[rank0]:   File "/env/lib/python3.11/site-packages/torch/nn/modules/linear.py", line 116, in forward
[rank0]:     return F.linear(input, self.weight, self.bias)
[rank0]: torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 22.00 MiB. GPU 0 has a total capacity of 23.65 GiB of which 11.06 MiB is free.
""".splitlines()

# pytorch/pytorch#118369 and what follows there.
STUCK = """\
[E ProcessGroupNCCL.cpp:458] [Rank 7] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=64088, OpType=ALLREDUCE, Timeout(ms)=1800000) ran for 25625251 milliseconds before timing out.
[E ProcessGroupNCCL.cpp:475] Some NCCL operations have failed or timed out. Due to the asynchronous nature of CUDA kernels, subsequent GPU operations might run on corrupted/incomplete data.
[E ProcessGroupNCCL.cpp:489] To avoid data inconsistency, we are taking the entire process down.
terminate called after throwing an instance of 'std::runtime_error'
""".splitlines()

# OSError while torch.save writes, then what it raises because of that (babysor/MockingBird#774).
NO_SPACE = """\
Traceback (most recent call last):
  File "/env/lib/python3.9/site-packages/torch/serialization.py", line 379, in save
    _save(obj, opened_zipfile, pickle_module, pickle_protocol)
  File "/env/lib/python3.9/site-packages/torch/serialization.py", line 499, in _save
    zip_file.write_record(name, storage.data_ptr(), num_bytes)
OSError: [Errno 28] No space left on device

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "/work/synthesizer_train.py", line 37, in <module>
    train(**vars(args))
RuntimeError: [enforce fail at inline_container.cc:300] . unexpected pos 64 vs 0
""".splitlines()

# huggingface/accelerate#1192.
ECC = """\
Traceback (most recent call last):
  File "train.py", line 989, in to
    return self._apply(convert)
RuntimeError: CUDA error: uncorrectable ECC error encountered
CUDA kernel errors might be asynchronously reported at some other API call,so the stacktrace below might be incorrect.
For debugging consider passing CUDA_LAUNCH_BLOCKING=1.
""".splitlines()

# pytorch/pytorch#85604, with the errno that later versions name.
TAKEN = """\
[W socket.cpp:401] [c10d] The server socket has failed to listen on [::]:47531 (errno: 98 - Address already in use).
[E socket.cpp:435] [c10d] The server socket has failed to listen on any local network address.
Traceback (most recent call last):
  File "train.py", line 180, in <module>
    train()
RuntimeError: The server socket has failed to listen on any local network address. The server socket has failed to bind to [::]:44796 (errno: 98 - Address already in use). The server socket has failed to bind to 0.0.0.0:44796 (errno: 98 - Address already in use).
""".splitlines()


@pytest.mark.parametrize(
    ("log", "kind"),
    [
        (OUT_OF_MEMORY, "device memory"),
        (STUCK, "communication"),
        (NO_SPACE, "disk full"),
        (ECC, "bad device"),
        (TAKEN, "port in use"),
    ],
    ids=["memory", "stuck", "disk", "ecc", "port"],
)
def test_whole_logs_as_they_were_posted(log, kind):
    assert kind_of("step 10  loss 2.9", *log) == kind


INNOCENT = {
    "a loss of nan that was skipped": ["step 9  loss nan, skipped by the scaler", "step 10  loss 2.9"],
    "advice about memory": ["hint: if CUDA runs out of memory, lower the microbatch", "error: bad value"],
    "a retry that went well": [
        "RuntimeWarning: CUDA out of memory in the probe, taking microbatch 4",
        "step 4  loss 3.1",
    ],
    "a checkpoint that was left out": [
        "checkpoint of step 5 left out: [Errno 28] No space left on device: 'x'",
        "step 6  loss 3.0",
    ],
    "an optional package": ["flash_attn: No module named 'flash_attn', using the slower kernel"],
    "words of a corpus": ["sample: 'Segmentation fault' was all it said, address already in use"],
    "a timeout that was set": ["NCCL timeout set to 600000 ms", "watchdog started"],
    "a module command that is missing": ["job.sh: line 4: module: command not found"],
    "another rank's exit": ["srun: error: n1: task 3: Exited with exit code 7"],
    "an own exception": ["Traceback (most recent call last):", '  File "a.py", line 1', "ValueError: bad"],
    "a teardown": [
        "srun: launch/slurm: _step_signal: Terminating StepId=2.0",
        "0: slurmstepd-n1: error: *** STEP 2.0 ON n1 CANCELLED AT 2026-11-22T01:16:12 ***",
        "srun: error: n2: tasks 2-3: Exited with exit code 143",
    ],
    "nothing": [],
}


@pytest.mark.parametrize("lines", INNOCENT.values(), ids=INNOCENT)
def test_innocent_words_raise_no_alarm(lines):
    assert kind_of(*lines) is None
    assert cause_of(Clues(FAILED, job_log=lines)) is None


def test_an_exception_that_was_caught_is_not_the_cause_of_a_later_one():
    later = ["Traceback (most recent call last):", '  File "a.py", line 9, in <module>', "KeyError: 'lr'"]
    assert kind_of(*OUT_OF_MEMORY, "taking a smaller batch", *later) is None
    of_ours = ended(exception="EngineError", reason="the corpus is too short")
    assert kind_of(*OUT_OF_MEMORY, "error: the corpus is too short", culprit=of_ours) is None


def test_the_exit_record_alone_is_enough():
    """The log may be gone, or on a disk that is full."""
    assert (
        kind_of(culprit=ended(exception="OSError", reason="[Errno 28] No space left on device"))
        == "disk full"
    )
    assert kind_of(culprit=ended(exception="MemoryError")) == "host memory"
    assert (
        kind_of(culprit=ended(exception="ModuleNotFoundError", reason="No module named 'x'"))
        == "missing package"
    )
    assert kind_of(culprit=ended(exception="ValueError", reason="[Errno 28] is no rank")) is None


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        (RunState.TIMEOUT, "walltime"),
        (RunState.PREEMPTED, "preempted"),
        (RunState.NODE_FAILED, "node lost"),
        (RunState.OUT_OF_MEMORY, "host memory"),
        (RunState.CANCELLED, "cancelled"),
        (RunState.REFUSED, "refused"),
    ],
)
def test_the_schedulers_word_comes_first(state, kind):
    attempt = Attempt(1, "7", state, 1, reason="what it said")
    cause = cause_of(Clues(attempt, ended(), log=OUT_OF_MEMORY))
    assert cause.kind == kind
    assert cause.words.endswith(": what it said")


@pytest.mark.parametrize("state", [state for state in RunState if not state.failed] + [RunState.PAUSED])
def test_an_attempt_that_did_not_fail_has_no_cause(state):
    if state is not RunState.CANCELLED:
        assert cause_of(Clues(Attempt(1, "7", state, 0), log=OUT_OF_MEMORY)) is None


def test_what_a_job_was_lost_by_may_stand_in_its_log():
    lost = Attempt(1, "7", RunState.LOST)
    line = "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-11-22T01:00:00 DUE TO TIME LIMIT ***"
    assert cause_of(Clues(lost, job_log=[line])).kind == "walltime"
    assert cause_of(Clues(lost)) is None


def test_a_rank_that_was_killed_is_spoken_for_by_the_job():
    killed = ended(code=137, signal=SIGKILL)
    assert cause_of(Clues(FAILED, killed)).kind == "killed"
    slurm = ["srun: error: nid001277: tasks 1-3: Out Of Memory"]
    assert cause_of(Clues(FAILED, killed, job_log=slurm)).kind == "host memory"
    assert cause_of(Clues(FAILED, ended(code=139, signal=SIGSEGV))).kind == "crash"
    assert cause_of(Clues(FAILED, ended(code=139))).kind == "crash"


@pytest.mark.parametrize("words", ["TIME LIMIT", "PREEMPTION", "NODE FAILURE, SEE SLURMCTLD LOG FOR DETAILS"])
def test_what_slurm_says_of_a_step_is_known_with_its_task_and_host(words):
    """As srun --label printed it on Slurm 22.05, with the reasons that slurmstepd has."""
    line = f"0: slurmstepd-n1: error: *** STEP 2.0 ON n1 CANCELLED AT 2026-11-22T01:16:12 DUE TO {words} ***"
    cause = cause_of(Clues(FAILED, ended(code=137, signal=SIGKILL), job_log=[line]))
    assert cause.kind in ("walltime", "preempted", "node lost")
    assert cause.words.endswith(line)


def test_a_rank_that_spoke_for_itself_is_not_interrupted_by_the_job():
    slurm = ["srun: error: nid001277: tasks 1-3: Out Of Memory"]
    assert cause_of(Clues(FAILED, ended(code=7), job_log=slurm)) is None


def test_exit_code_7_is_only_an_exit_code():
    assert cause_of(Clues(Attempt(1, "7", RunState.FAILED, 7), ended(code=7, reason="exit code 7"))) is None


def test_a_shell_that_found_no_program_is_believed_by_its_exit_code():
    nothing = Attempt(1, "7", RunState.FAILED, 127)
    line = "job.sh: line 12: /opt/env/bin/python: No such file or directory"
    assert cause_of(Clues(nothing, job_log=[line])).words.endswith(line)
    assert cause_of(Clues(nothing)).kind == "program not found"


def test_those_who_waited_in_vain_are_told_from_the_one_who_was_stuck():
    reason = "another rank did not come in time: Timed out waiting 5000ms for recv operation to complete"
    waited = [ended(rank, exception="PeerLostError", reason=reason) for rank in (0, 1, 3)]
    stuck = ended(2, 143, SIGTERM, reason="terminated by SIGTERM")
    cause = cause_of(Clues(FAILED, None, [*waited, stuck]))
    assert cause.kind == "communication"
    assert "ranks 0-1, 3 waited in vain; look at rank 2" in cause.words
    frozen = ended(2, 137, SIGKILL)
    assert "look at rank 2" in cause_of(Clues(FAILED, frozen, waited)).words


def test_a_long_line_is_cut():
    assert len(cause_of(Clues(FAILED, ended(exception="ImportError", reason="x" * 9999))).words) < 400


def test_every_kind_can_be_told():
    told = {symptom.kind for symptom in SYMPTOMS} | {"killed", "cancelled", "refused"}
    assert told == set(KINDS)


def test_no_pattern_is_slow_on_a_long_line():
    """A log may hold a line of a megabyte that almost matches."""
    for symptom in SYMPTOMS:
        for filler in (symptom.seen[:-1] * 5000, "x: " * 100_000, "[" * 200_000):
            symptom.pattern.match(filler)


def test_every_key_that_is_advised_exists():
    roots = Experiment.model_fields | Site.model_fields
    keys = re.findall(r"\b(?:[a-z_]+\.)+[a-z_]+\b", " ".join(kind.advice for kind in KINDS.values()))
    assert len(keys) > 5
    for key in keys:
        assert key.partition(".")[0] in roots, key


def test_a_job_whose_log_could_not_be_opened_is_told_to_have_lost_its_folder():
    attempt = Attempt(1, "7", RunState.FAILED, 15, "FAILED (JobLaunchFailure)")
    cause = cause_of(Clues(attempt))
    assert (cause.kind, "JobLaunchFailure" in cause.words) == ("no run folder", True)
