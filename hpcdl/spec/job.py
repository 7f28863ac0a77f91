"""What a run asks of the machine."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from hpcdl.spec.frozen import Frozen
from hpcdl.units import parse_walltime

_DIRECTIVE_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@+/-]*")
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Not TOKENIZERS_PARALLELISM, nor MAX_TOKENS, nor what tokenises; nor PWD and OLDPWD, which are folders.
TELLING = (
    r"token(?!s|i[sz]e)|secret|passw|credential|(?:api|access|private)_?key|connection_?string"
    r"|_(?:pass|pwd|key|jwt|sas)\b"
)
"""What says of a variable, in its name and in small or capital letters, that it may hold a secret."""
_SECRET = re.compile(TELLING, re.IGNORECASE)


def directive_word(value: str) -> str:
    """A value that may stand in a scheduler directive, where nothing can be quoted."""
    if not _DIRECTIVE_WORD.fullmatch(value):
        raise ValueError(
            f"{value!r} may hold only letters, digits and _ . : @ + / - and must not begin with a sign"
        )
    return value


def host_word(value: str) -> str:
    """A node's name, which stands in a directive among others."""
    if not _HOST.fullmatch(value):
        raise ValueError(
            f"{value!r} is not the name of one node: letters, digits, dots, _ and -; list each by name"
        )
    return value


def _walltime(value: str) -> str:
    parse_walltime(value)
    return value


def looks_secret(name: str) -> bool:
    """Whether a variable of this name may hold a secret."""
    return bool(_SECRET.search(name))


def _variable(name: str) -> str:
    if not _VARIABLE.fullmatch(name):
        raise ValueError(f"{name!r} is not a name an environment variable can have")
    if looks_secret(name):
        raise ValueError(
            f"{name} looks like a secret, and run folders are shared; take it out of the file and "
            f"export it in the shell you submit from (on PBS, which does not hand it on: keep it in a file "
            f"of your own that the program reads)"
        )
    return name


def _no_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("an environment value cannot hold a NUL character")
    return value


DirectiveWord = Annotated[str, AfterValidator(directive_word)]
HostName = Annotated[str, AfterValidator(host_word)]
Walltime = Annotated[str, AfterValidator(_walltime), Field(description="HH:MM:SS or D-HH:MM:SS")]
VariableName = Annotated[str, AfterValidator(_variable)]
VariableValue = Annotated[str, AfterValidator(_no_nul)]
Environment = dict[VariableName, VariableValue]


class Resources(Frozen):
    """How much of the machine: ``gpus``, or whole ``nodes``, or ``gpus`` spread over ``nodes``."""

    gpus: int | None = Field(None, gt=0, description="devices in all, one rank each")
    nodes: int | None = Field(None, gt=0, description="nodes; without gpus, every device of each")
    walltime: Walltime = "01:00:00"
    queue: DirectiveWord | None = Field(
        None, description="partition, queue or QOS; the site's default if not given"
    )
    account: DirectiveWord | None = Field(None, description="project or bank that pays")
    exclude: tuple[HostName, ...] = Field((), description="nodes that no attempt may get, by their names")
    exclude_bad: bool = Field(
        True, description="nor those that earlier attempts of the run found to be bad, where the site allows"
    )

    @model_validator(mode="after")
    def _spread_evenly(self) -> Resources:
        if self.gpus and self.nodes and self.gpus % self.nodes:
            raise ValueError(f"gpus {self.gpus} cannot be spread evenly over nodes {self.nodes}")
        return self


class Overlap(Frozen):
    """What communication runs beside computation. Switching one off changes no number."""

    input_gradient: bool = Field(
        True, description="the all-reduce of an input gradient beside the weight gradient's product"
    )
    weight_scatter: bool = Field(
        True, description="reduce-scatters over z waited for at the end of a backward"
    )
    weight_gather: bool = Field(
        True, description="the weights of the next layer gathered over z beside this one's product"
    )
    gradient_reduction: bool = Field(
        True, description="gradients reduced over data while the last backward still runs"
    )
    optimizer: bool = Field(True, description="chunks updated while later ones are still being reduced")


class Communication(Frozen):
    """Which runtime carries messages and collectives, and what overlaps with them."""

    transport: Literal["dist", "mpi", "mixed"] = Field(
        "dist",
        description="dist: torch.distributed (NCCL or Gloo); mpi: mpi4py over the machine's MPI; "
        "mixed: messages of the pipeline over MPI, collectives over torch.distributed",
    )
    cuda_aware: Literal["auto"] | bool = Field(
        "auto", description="whether MPI reads GPU memory itself; auto: if the library says so"
    )
    timeout_seconds: int = Field(
        1800, gt=0, description="how long torch.distributed waits in one operation for a rank that is stuck"
    )
    overlap: Overlap = Overlap()

    @property
    def needs_mpi(self) -> bool:
        """Whether ranks must be started by what MPI can be initialised under."""
        return self.transport in ("mpi", "mixed")


class Layout(Frozen):
    """Where the ranks of one job go, as decided for one site."""

    nodes: int = Field(gt=0)
    ranks_per_node: int = Field(gt=0)
    cores_per_rank: int = Field(gt=0)

    @property
    def ranks(self) -> int:
        """World size."""
        return self.nodes * self.ranks_per_node
