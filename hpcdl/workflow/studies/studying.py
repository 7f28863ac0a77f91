"""A request understood: the experiment, the site and the decomposition, before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpcdl.errors import InfeasibleError, UsageError
from hpcdl.planner.layout import check_precision, layout
from hpcdl.planner.plan import Plan, plan
from hpcdl.sites.load import load_site
from hpcdl.sites.site import Site
from hpcdl.spec import load, reading
from hpcdl.spec.command import CommandExperiment
from hpcdl.spec.decomposition import Decomposition, violations
from hpcdl.spec.entry import EntryModel
from hpcdl.spec.experiment import Experiment
from hpcdl.spec.job import Layout
from hpcdl.spec.points import is_swept
from hpcdl.spec.reading import AnyExperiment


@dataclass(frozen=True)
class Request:
    """What a user typed: an experiment file, a site, and changes to the experiment."""

    file: Path
    site: str = "local"
    settings: Sequence[str] = ()
    gpus: int | None = None
    nodes: int | None = None


@dataclass(frozen=True)
class Inputs:
    """A request read and checked: what is to be run, and where."""

    source: bytes
    document: load.Document  # where each value of the experiment stands
    experiment: AnyExperiment
    site: Site


@dataclass(frozen=True)
class Study(Inputs):
    """A request understood: everything that is known before a node-hour is spent."""

    layout: Layout
    plan: Plan | None = None  # None for what the planner knows nothing of: a model or a command of one's own
    decomposition: Decomposition | None = None  # None for a command

    @property
    def what(self) -> str:
        """What runs, in words."""
        if isinstance(self.experiment, CommandExperiment):
            return str(self.experiment.command)
        return str(self.decomposition)


def read(request: Request) -> Inputs:
    """The experiment and the site that a request names.

    Raises:
        UsageError, SiteError: a file that is not there or is wrong.
    """
    source, document = opened(request)
    if is_swept(document):
        raise UsageError(
            f"{document.place(('sweep',))}: sweep: names many experiments, and here is room for one",
            "`hpcdl submit EXP --dry-run` shows them all; --set sweep=null takes the file without its sweep",
        )
    experiment = reading.experiment(document).anchored(request.file.absolute().parent)
    site = load_site(request.site)
    if isinstance(experiment, Experiment):
        check_precision(experiment.training.precision, experiment.resources.queue, site, document)
    return Inputs(source, document, experiment, site)


def opened(request: Request) -> tuple[bytes, load.Document]:
    """The experiment file as it is, and what it says with the changes of the command line.

    Raises:
        UsageError: it cannot be read, or a change cannot be made.
    """
    document = load.read(request.file)
    source = request.file.read_bytes()
    change(document, request)
    return source, document


Planner = Callable[[Experiment, Site, int], Plan]
"""Plans an experiment on so many devices of a site."""


def study(request: Request) -> Study:
    """Read, check and plan.

    Raises:
        UsageError, SiteError, InfeasibleError: what stands in the way.
    """
    inputs = read(request)
    return planned(inputs, layout(inputs.experiment.resources, inputs.site, inputs.document))


def planned(
    inputs: Inputs, place: Layout, given: Decomposition | None = None, planner: Planner = plan
) -> Study:
    """The decomposition of what was read and has its place.

    Args:
        inputs: what is to be run.
        place: where its ranks lie.
        given: the decomposition that is judged, whatever ``parallelism`` says.
        planner: who is asked.

    Raises:
        UsageError, InfeasibleError: what stands in the way.
    """
    experiment = inputs.experiment
    found, chosen = None, None
    if isinstance(experiment, Experiment):
        asked = experiment if given is None else experiment.model_copy(update={"parallelism": given})
        if isinstance(experiment.model, EntryModel):
            chosen = unplanned(asked, place.ranks)
        else:
            found = planner(asked, inputs.site, place.ranks)
            chosen = found.best.decomposition
    return Study(inputs.source, inputs.document, experiment, inputs.site, place, found, chosen)


def unplanned(experiment: Experiment, ranks: int) -> Decomposition:
    """What a model of the user's own runs with: what was given, or one replica a device.

    Raises:
        InfeasibleError: it breaks a rule, or does not make the devices there are.
    """
    batch = experiment.training.global_batch
    asked = experiment.parallelism
    chosen = Decomposition(data=ranks, microbatch=max(1, batch // ranks)) if asked == "auto" else asked
    broken = [*violations(chosen, experiment.model, batch).values()]
    if chosen.ranks != ranks:
        broken.append(f"{chosen} makes {chosen.ranks} ranks, but the job has {ranks} devices")
    if broken:
        raise InfeasibleError("\n".join(f"parallelism: {line}" for line in broken))
    return chosen


def change(document: load.Document, request: Request) -> None:
    """What was typed beside a file: settings, then a size, which replaces both keys of what the file says.

    Raises:
        UsageError: a setting that is none.
    """
    load.override(document, request.settings)
    given = {"gpus": request.gpus, "nodes": request.nodes}
    flags = " ".join(f"--{key} {value}" for key, value in given.items() if value is not None)
    if flags:
        for key, value in given.items():
            load.assign(document, ("resources", key), value, flags)
