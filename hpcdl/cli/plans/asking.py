"""What ``hpcdl plan`` is asked, and how it is to be shown: what all of its views begin with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from hpcdl.errors import UsageError
from hpcdl.planner.counts import counts
from hpcdl.planner.engines import find_engine
from hpcdl.planner.layout import find_partition, spread
from hpcdl.planner.question import Question
from hpcdl.sites.node import Device
from hpcdl.sites.profile import read_profile
from hpcdl.spec.command import CommandExperiment
from hpcdl.spec.entry import EntryModel
from hpcdl.workflow.studies import studying

if TYPE_CHECKING:
    from hpcdl.cli.plans.simulating import Simulation


@dataclass(frozen=True)
class Ask:
    """What the planner is asked, in the words of the command line."""

    file: Path
    site: str
    settings: Sequence[str] = ()
    gpus: str | None = None
    nodes: int | None = None
    engine: str = "hpcdl"
    profile: Path | None = None
    what_if: Sequence[str] = ()
    compare: Path | None = None
    tokens: str | None = None
    weak: bool = False

    @property
    def counts(self) -> tuple[int, ...]:
        """Numbers of devices; none where the experiment says how many."""
        return () if self.gpus is None else counts(self.gpus)

    @property
    def several(self) -> bool:
        """Whether a table of numbers of devices is wanted, be it of one number."""
        return len(self.counts) > 1 or self.tokens is not None

    def request(self, file: Path) -> studying.Request:
        """``file`` with the same flags, for one number of devices."""
        gpus = self.counts[0] if self.counts else None
        return studying.Request(file, self.site, self.settings, gpus, self.nodes)


@dataclass(frozen=True)
class View:
    """How it is shown."""

    top: int = 10
    explain: int | None = None
    assumptions: bool = False
    simulate: Simulation | None = None
    plot: Path | None = None
    json: bool = False

    @property
    def inspects(self) -> str | None:
        """A flag that looks into one candidate, if one is given."""
        flags = ("explain", "assumptions", "simulate")
        return next((f"--{flag}" for flag in flags if getattr(self, flag)), None)


def check(ask: Ask, view: View) -> None:
    """Refuse flags of which one would have to be ignored.

    Raises:
        UsageError: naming them.
    """
    many = len(ask.counts) > 1
    if ask.compare and ask.what_if:
        raise UsageError("--compare and --what-if each set two plans side by side", "use one of them")
    if many and ask.nodes:
        raise UsageError(f"--nodes {ask.nodes} goes with one number of devices, not with --gpus {ask.gpus}")
    if ask.several and ask.compare:
        raise UsageError("--compare sets two plans side by side", "give one --gpus, without --tokens")
    if ask.weak and not many:
        raise UsageError("--weak lets the batch grow with the devices", "give several: --gpus 64,128,256")
    if view.inspects and (ask.several or ask.compare or ask.what_if):
        raise UsageError(
            f"{view.inspects} looks at one plan", "give one --gpus, without --tokens, --compare and --what-if"
        )


def plots(path: Path) -> ModuleType:
    """What draws, if it can draw to ``path``.

    Raises:
        UsageError: neither SVG nor PNG, no such folder, or no matplotlib.
    """
    if path.suffix not in (".svg", ".png"):
        raise UsageError(f"--plot {path} is neither .svg nor .png", "name it, for example, plan.svg")
    if not path.parent.is_dir():
        raise UsageError(f"--plot {path}: there is no folder {path.parent}")
    try:
        from hpcdl.cli.plans import plots as drawing
    except ModuleNotFoundError as error:
        raise UsageError(
            f"--plot needs {error.name}, which is an extra", "pip install 'hpcdl[plot]'"
        ) from None
    return drawing


def question(ask: Ask, inputs: studying.Inputs) -> Question:
    """What is asked.

    Raises:
        UsageError: a model or a command of the user's own, an unknown engine, or a profile that is none.
    """
    if isinstance(inputs.experiment, CommandExperiment):
        raise UsageError(
            f"hpcdl plan knows what the bundled engine costs, but nothing of {inputs.experiment.command}",
            f"submit it: it would be started on {devices(inputs)} ranks",
        )
    if isinstance(inputs.experiment.model, EntryModel):
        raise UsageError(
            "hpcdl plan knows what transformers cost, but nothing of a model of your own (model.entry)",
            f"submit it: it would run {studying.unplanned(inputs.experiment, devices(inputs))}",
        )
    profile = None if ask.profile is None else read_profile(ask.profile, _device(inputs))
    return Question(inputs.experiment, inputs.site, find_engine(ask.engine), profile)


def _device(inputs: studying.Inputs) -> Device:
    site = inputs.site
    return site.nodes[find_partition(inputs.experiment.resources.queue, site)[1].node].device


def devices(inputs: studying.Inputs) -> int:
    """How many the experiment asks for: a number, or those of its nodes.

    Raises:
        InfeasibleError, SiteError: the site cannot place those of its nodes.
    """
    asked = inputs.experiment.resources
    return asked.gpus or spread(asked, inputs.site, inputs.document).ranks
