"""The experiment: everything a user can ask for, checked and complete."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from hpcdl.spec.checkpoint import Checkpoint
from hpcdl.spec.data import OWN_DATA, Data
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.entry import AnyModel, EntryModel, is_own
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


def _data_or_entry(schema: dict[str, Any]) -> None:
    """For editors: a model of the user's own brings its data."""
    schema["required"] = ["model"]
    schema["anyOf"] = [{"required": ["data"]}, {"properties": {"model": {"required": ["entry"]}}}]


class Experiment(Frozen):
    """One experiment file."""

    model_config = ConfigDict(json_schema_extra=_data_or_entry)

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

    @model_validator(mode="before")
    @classmethod
    def _own_data(cls, given: Any) -> Any:
        """A model of the user's own needs no ``data:``."""
        if isinstance(given, dict) and is_own(given.get("model")):
            return {"data": OWN_DATA, **given}
        return given

    @model_validator(mode="after")
    def _vocabulary_holds_tokens(self) -> Experiment:
        if isinstance(self.model, EntryModel):
            return self
        if self.data.tokenizer == "bytes" and self.data.reads_text and self.model.vocab < 256:
            raise ValueError(
                f"the bytes tokenizer needs a vocab of at least 256, but model.vocab is {self.model.vocab}"
            )
        return self

    @model_validator(mode="after")
    def _document_ends_are_tokens(self) -> Experiment:
        if isinstance(self.model, EntryModel):
            return self
        for source in self.data.all_sources:
            if source.document_end is not None and source.document_end >= self.model.vocab:
                raise ValueError(
                    f"document_end {source.document_end} is not a token: model.vocab is {self.model.vocab}"
                )
        return self

    @model_validator(mode="after")
    def _evaluation_has_data(self) -> Experiment:
        if self.evaluation.every and not self.data.validation and not isinstance(self.model, EntryModel):
            raise ValueError(
                f"evaluation.every is {self.evaluation.every}, but nothing is held out to evaluate on; "
                "set data.validation, for example to 0.01"
            )
        return self

    @model_validator(mode="after")
    def _own_models_bring_their_data(self) -> Experiment:
        own = isinstance(self.model, EntryModel)
        if own and self.data != OWN_DATA:
            raise ValueError("model.entry returns its data; remove data: from the experiment")
        if not own and self.data.source == "model":
            raise ValueError("data.source model is for model.entry; give the text or tokens to train on")
        if own and self.checkpoint.start:
            raise ValueError("checkpoint.start reads weights of transformers only; load them in model.entry")
        return self

    @property
    def row_tokens(self) -> int:
        """Tokens of one sequence; a sample of a model of the user's own counts as one."""
        return 1 if isinstance(self.model, EntryModel) else self.model.sequence

    @property
    def tied(self) -> bool:
        """Whether the first and the last layer share a weight."""
        return not isinstance(self.model, EntryModel) and self.model.tied

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
