"""The experiment: everything a user can ask for, checked and complete."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from hpcdl.spec.basics import Basics, absolute
from hpcdl.spec.checkpoint import Checkpoint
from hpcdl.spec.data import OWN_DATA, Data
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.entry import AnyModel, EntryModel, is_own
from hpcdl.spec.frozen import Frozen
from hpcdl.spec.health import Health
from hpcdl.spec.job import Communication, Layout
from hpcdl.spec.model import Model
from hpcdl.spec.observe import Evaluation, Metrics, Trace
from hpcdl.spec.training import Training


def _data_or_entry(schema: dict[str, Any]) -> None:
    """For editors: a model of the user's own brings its data."""
    schema["required"] = ["model"]
    schema["anyOf"] = [{"required": ["data"]}, {"properties": {"model": {"required": ["entry"]}}}]


class Experiment(Basics):
    """An experiment file for the bundled engine."""

    model_config = ConfigDict(json_schema_extra=_data_or_entry)

    model: AnyModel
    data: Data
    training: Training = Training()
    parallelism: Literal["auto"] | Decomposition = Field("auto", description="auto: the planner chooses")
    checkpoint: Checkpoint = Checkpoint()
    health: Health = Health()
    evaluation: Evaluation = Evaluation()
    communication: Communication = Communication()
    trace: Trace = Trace()
    metrics: Metrics = Metrics()

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
    def steps(self) -> int | None:
        """Optimizer steps in all."""
        return self.training.steps

    @property
    def needs_mpi(self) -> bool:
        """Whether ranks must be started by what MPI can be initialised under."""
        return self.communication.needs_mpi

    @property
    def ends_together(self) -> bool:
        """Whether all ranks leave when they have met a last time: in a barrier after the last step."""
        return True

    @property
    def before_limit_seconds(self) -> int | None:
        """How long before the walltime ends a run saves itself; 0: not at all; None: a usual time."""
        return self.checkpoint.before_limit_seconds

    @property
    def paths(self) -> dict[str, str]:
        """Data, tokenizers and weights."""
        start = self.checkpoint.start
        return {**self.data.paths, **({} if start is None else {"checkpoint.start": start})}

    def anchored(self, folder: Path) -> Self:
        """The same with its paths absolute; relative ones are relative to the folder of the file."""
        changes: dict[str, Any] = {"data": self.data.anchored(folder)}
        if isinstance(self.model, EntryModel):
            where = absolute(self.model.folder, folder)
            changes["model"] = self.model.model_copy(update={"folder": where})
        if self.checkpoint.start is not None:
            start = absolute(self.checkpoint.start, folder)
            changes["checkpoint"] = self.checkpoint.model_copy(update={"start": start})
        return self.model_copy(update=changes)

    def repeated(self, index: int) -> Self:
        """The same with a seed of its own, as one of several repetitions; the first keeps its seed."""
        training = self.training.model_copy(update={"seed": self.training.seed + index})
        return self.model_copy(update={"training": training})

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


class Rendezvous(Frozen):
    """How rank 0 finds the address that it publishes for the others."""

    address: Literal["hostname", "interface", "loopback"] = Field(
        "hostname", description="its host name, the address of an interface, or 127.0.0.1 (one machine only)"
    )
    suffix: str = Field(
        "", pattern=r"^[A-Za-z0-9.-]*$", description="added to the host name, e.g. i or .hsn.example.org"
    )
    interface: str | None = Field(
        None, pattern=r"^[A-Za-z0-9._-]+$", description="network interface for sockets"
    )
    timeout_seconds: int = Field(300, gt=0, description="how long a rank waits for the others")

    @model_validator(mode="after")
    def _interface_given(self) -> Rendezvous:
        if self.address == "interface" and not self.interface:
            raise ValueError("address: interface needs the name of the interface")
        return self


class BaseRun(Frozen):
    """``resolved.json``: one run, complete. The ranks read nothing else."""

    format: Literal[1] = 1
    run: str
    experiment: Basics
    layout: Layout
    rendezvous: Rendezvous
    site: str
    site_file: dict[str, Any] = Field(default_factory=dict, description="the site as it was at submission")
    site_path: str = Field("", description="the file of the site; empty: there is none, or it is not known")
    account_variable: str = Field(
        "", description="the environment variable that held resources.account; empty: the experiment says it"
    )
    versions: dict[str, str]


class ResolvedRun(BaseRun):
    """``resolved.json`` of a run of the bundled engine.

    ``experiment.parallelism`` still says what was asked; ``decomposition`` is what runs.
    """

    experiment: Experiment
    decomposition: Decomposition
    device: Literal["cpu", "cuda"]
    device_per_rank: bool = Field(description="whether a rank sees only its own device (then its index is 0)")
    peak_flops: float | None = Field(
        None,
        description="dense peak that a rank is entitled to at the run's precision, FLOP/s; null: unknown",
    )
