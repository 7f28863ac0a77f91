"""The experiment: everything a user can ask for, checked and complete."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from hpcdl.spec.checkpoint import Checkpoint
from hpcdl.spec.data import Data
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.entry import EntryModel
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


def _kind(given: Any) -> str:
    """Which of the two a ``model:`` is: it is the user's own if it has an entry."""
    own = isinstance(given, EntryModel) or (isinstance(given, dict) and "entry" in given)
    return "EntryModel" if own else "Model"


AnyModel = Annotated[
    Annotated[Model, Tag("Model")] | Annotated[EntryModel, Tag("EntryModel")], Discriminator(_kind)
]


class Experiment(Frozen):
    """One experiment file."""

    name: Annotated[str, AfterValidator(_visible)] = "experiment"
    model: AnyModel
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
        if isinstance(self.model, EntryModel):
            return self
        if self.data.tokenizer == "bytes" and self.model.vocab < 256:
            raise ValueError(
                f"the bytes tokenizer needs a vocab of at least 256, but model.vocab is {self.model.vocab}"
            )
        return self

    @property
    def shape(self) -> Model:
        """The transformer that is trained.

        Raises:
            TypeError: the model is the user's own, and of those no shape is known.
        """
        if isinstance(self.model, EntryModel):
            raise TypeError(f"{self.model.entry} has no shape")
        return self.model


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
