"""Starting programs: what of a job one may be in is handed on, and what is not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdl import shell
from hpcdl.errors import SchedulerError
from hpcdl.shell import outside_job

# Names that jobs were seen to have, beside those of the user's shell: Slurm 22.05 (srun), OpenPBS 23.06, Hydra
# 5.0.2, Open MPI 4.1.4; and of the manuals: PALS, jsrun and LSF, flux-run(1), torchrun.
OF_JOBS = """
SLURM_JOB_ID SLURM_NTASKS SLURM_NTASKS_PER_NODE SLURM_GPUS_PER_NODE SLURM_TRES_PER_TASK SLURM_CPU_BIND
SLURMD_NODENAME SBATCH_TIMELIMIT SRUN_CPUS_PER_TASK SALLOC_PARTITION SQUEUE_PARTITION SCANCEL_INTERACTIVE
PBS_JOBID PBS_NODEFILE PBS_O_WORKDIR PBS_ENVIRONMENT PBS_JOBCOOKIE PBS_DPREFIX
HYDI_CONTROL_FD MPI_LOCALNRANKS MPI_LOCALRANKID PMI_FD PMI_HOSTNAME PMI_RANK PMI_SIZE
OMPI_APP_CTX_NUM_PROCS OMPI_COMMAND OMPI_COMM_WORLD_LOCAL_RANK OMPI_COMM_WORLD_RANK OMPI_COMM_WORLD_SIZE
OMPI_FILE_LOCATION OMPI_FIRST_RANKS OMPI_MCA_ess OMPI_MCA_ess_base_jobid OMPI_MCA_initial_wdir
OMPI_MCA_orte_app_num OMPI_MCA_orte_hnp_uri OMPI_MCA_orte_precondition_transports OMPI_MCA_pmix
OMPI_MCA_shmem_RUNTIME_QUERY_hint OMPI_NUM_APP_CTX OMPI_UNIVERSE_SIZE PMIX_RANK PMIX_NAMESPACE PMIX_SERVER_URI41
PALS_RANKID PALS_LOCAL_RANKID PALS_APID
LSB_JOBID LSB_HOSTS LSB_DJOB_RANKFILE LSB_MCPU_HOSTS LSFUSER LS_JOBPID LS_SUBCWD LSF_JOB_TIMESTAMP_VALUE
JSM_NAMESPACE_RANK JSM_NAMESPACE_LOCAL_RANK
FLUX_JOB_ID FLUX_TASK_RANK FLUX_TASK_LOCAL_ID FLUX_JOB_SIZE FLUX_KVS_NAMESPACE
RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE GROUP_RANK ROLE_RANK ROLE_NAME MASTER_ADDR MASTER_PORT
TORCHELASTIC_RUN_ID TORCHELASTIC_RESTART_COUNT
"""

OF_USERS = """
SLURM_CONF SLURM_JWT PBS_CONF_FILE PBS_SERVER PBS_DEFAULT PBS_EXEC LSF_ENVDIR LSF_BINDIR LSF_SERVERDIR
LSF_LIBDIR FLUX_URI OMPI_MCA_pml OMPI_MCA_btl OMPI_ALLOW_RUN_AS_ROOT PMIX_MCA_psec PMIX_INSTALL_PREFIX
HYDRA_LAUNCHER I_MPI_PMI_LIBRARY MPICH_GPU_SUPPORT_ENABLED NCCL_DEBUG PATH HOME LS_COLORS RANKING MASTER
HF_TOKEN WANDB_API_KEY CUDA_HOME SLURMY MPI_LOCALE
"""

OF_NODES = [
    "CUDA_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "ZE_AFFINITY_MASK",
    "OMP_PLACES",
]


@pytest.mark.parametrize("name", OF_JOBS.split())
def test_what_a_job_is_told_of_itself_is_not_handed_on(name):
    for here in (False, True):
        assert outside_job({name: "1"}, here=here) == {}


@pytest.mark.parametrize("name", OF_USERS.split())
def test_where_a_scheduler_is_and_what_a_user_wants_stays(name):
    assert outside_job({name: "1"}) == {name: "1"}


@pytest.mark.parametrize("name", OF_NODES)
def test_devices_of_this_node_are_kept_for_what_stays_on_it(name):
    """A job of --site local inside an allocation may use the allocation's devices only."""
    assert outside_job({name: "1"}) == {}
    assert outside_job({name: "1"}, here=True) == {name: "1"}


@given(
    st.dictionaries(
        st.sampled_from([*OF_JOBS.split(), *OF_USERS.split(), *OF_NODES])
        | st.text(st.characters(exclude_characters="=\0"), min_size=1),
        st.text(),
    )
)
def test_any_environment_keeps_its_values_and_loses_nothing_of_the_users(environment):
    left = outside_job(environment)
    assert left.items() <= environment.items()
    assert outside_job(left) == left
    assert not set(left) & {*OF_JOBS.split(), *OF_NODES}
    assert set(left) >= set(environment) & set(OF_USERS.split())


def variables(command: list[str]) -> set[str]:
    plain = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    printed = subprocess.run(
        [*command, "env"], env=plain, capture_output=True, text=True, check=True, timeout=60
    )
    return {line.partition("=")[0] for line in printed.stdout.splitlines()} - {*plain, "PWD", "SHLVL", "_"}


def test_nothing_of_a_real_mpiexec_is_handed_on():
    pytest.importorskip("mpi4py")
    mpiexec = Path(sys.executable).with_name("mpiexec")
    if not mpiexec.exists():
        pytest.skip("NO MPIEXEC TESTED: none beside this Python")
    set_by_it = variables([str(mpiexec), "-n", "1"])
    assert "PMI_RANK" in set_by_it
    # What is left is of the Fortran runtime: where output is unbuffered, which shapes nothing.
    assert set(outside_job(dict.fromkeys(set_by_it, "1"))) <= {"GFORTRAN_UNBUFFERED_PRECONNECTED"}


def test_programs_are_started_outside_of_the_job(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "8")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setenv("SLURM_CONF", "/etc/there")
    show = ["bash", "-c", 'echo "${SLURM_NTASKS-} ${CUDA_VISIBLE_DEVICES-} $SLURM_CONF"']
    assert shell.run(show).stdout == "  /etc/there\n"
    assert shell.run(show, here=True).stdout == " 1 /etc/there\n"


def test_arguments_that_are_too_long_are_an_error_with_a_reason():
    with pytest.raises(SchedulerError, match="cannot run 'true': Argument list too long"):
        shell.run(["true", "x" * 200_000])


def test_the_page_gives_the_reason_for_every_variable_that_is_not_handed_on():
    page = (Path(__file__).parents[1] / "docs" / "placement.md").read_text()
    entries = [" ".join(entry.split()).replace("`", "") for entry in page.split("\n- ")]
    for source in shell._SOURCES:
        (entry,) = [entry for entry in entries if source.why in entry]
        for name in (source.leaves + " " + source.stays).split():
            assert re.search(rf"\b{name}(?![A-Z])", entry), (name, entry)
