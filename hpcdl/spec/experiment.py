"""The experiment: everything a user can ask for, checked and complete."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from hpcdl.spec.checkpoint import Checkpoint
from hpcdl.spec.data import Data
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.frozen import Frozen
from hpcdl.spec.job import Communication, Environment, Layout, Resources
from hpcdl.spec.model import Model
from hpcdl.spec.observe import Evaluation, Metrics, Trace
from hpcdl.spec.training import Training


def _visible(name: str) -> str:
    if not name.strip():
        raise ValueError("a name needs at least one visible character")
    if "\0" in name:
        raise ValueError("a name cannot hold a NUL character")
    return name


class Experiment(Frozen):
    """One experiment file."""

    name: Annotated[str, AfterValidator(_visible)] = "experiment"
    model: Model
    data: Data
    training: Training = Training()
    parallelism: Literal["auto"] | Decomposition = Field("auto", description="auto: the planner chooses")
    resources: Resources = Resources()
    checkpoint: Checkpoint = Checkpoint()
    evaluation: Evaluation = Evaluation()
    communication: Communication = Communication()
    trace: Trace = Trace()
    metrics: Metrics = Metrics()
    environment: Environment = Field(default_factory=dict, description="variables every rank sees")

    @model_validator(mode="after")
    def _vocabulary_holds_tokens(self) -> Experiment:
        if self.data.tokenizer == "bytes" and self.data.reads_text and self.model.vocab < 256:
            raise ValueError(
                f"the bytes tokenizer needs a vocab of at least 256, but model.vocab is {self.model.vocab}"
            )
        return self

    @model_validator(mode="after")
    def _document_ends_are_tokens(self) -> Experiment:
        for source in self.data.all_sources:
            if source.document_end is not None and source.document_end >= self.model.vocab:
                raise ValueError(
                    f"document_end {source.document_end} is not a token: model.vocab is {self.model.vocab}"
                )
        return self

    @model_validator(mode="after")
    def _evaluation_has_data(self) -> Experiment:
        if self.evaluation.every and not self.data.validation:
            raise ValueError(
                f"evaluation.every is {self.evaluation.every}, but nothing is held out to evaluate on; "
                "set data.validation, for example to 0.01"
            )
        return self


class ResolvedRun(Frozen):
    """``resolved.json``: one run, complete. The engine reads nothing else.

    ``experiment.parallelism`` still says what was asked; ``decomposition`` is what runs.
    """

    format: Literal[1] = 1
    run: str
    experiment: Experiment
    decomposition: Decomposition
    layout: Layout
    device: Literal["cpu", "cuda"]
    device_per_rank: bool = Field(description="whether a rank sees only its own device (then its index is 0)")
    rendezvous: Rendezvous
    peak_flops: float | None = Field(
        None,
        description="dense peak that a rank is entitled to at the run's precision, FLOP/s; null: unknown",
    )
    site: str
    site_file: dict[str, Any] = Field(default_factory=dict, description="the site as it was at submission")
    versions: dict[str, str]


class Rendezvous(Frozen):
    """How rank 0 finds the address that it publishes for the others."""

    address: Literal["hostname", "interface", "loopback"] = Field(
        "hostname", description="its host name, the address of an interface, or 127.0.0.1 (one machine only)"
    )
    suffix: str = Field(
        "", pattern=r"[A-Za-z0-9.-]*", description="added to the host name, e.g. i or .hsn.example.org"
    )
    interface: str | None = Field(
        None, pattern=r"[A-Za-z0-9._-]+", description="network interface for sockets"
    )
    timeout_seconds: int = Field(300, gt=0, description="how long a rank waits for the others")

    @model_validator(mode="after")
    def _interface_given(self) -> Rendezvous:
        if self.address == "interface" and not self.interface:
            raise ValueError("address: interface needs the name of the interface")
        return self


ResolvedRun.model_rebuild()
