"""``hpcdl plan``: reads what is asked, and shows one plan, several, or two side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from hpcdl import workflow
from hpcdl.cli import comparing, plan_tables, render, simulating
from hpcdl.cli import scaling as scaling_view
from hpcdl.cli.simulating import Simulation
from hpcdl.errors import HpcdlError, InfeasibleError, UsageError
from hpcdl.planner.assumptions import assumptions, untested
from hpcdl.planner.comparison import Comparison
from hpcdl.planner.engines import find_engine
from hpcdl.planner.explain import chosen, explain, explanation
from hpcdl.planner.layout import layout, spread
from hpcdl.planner.plan import Plan
from hpcdl.planner.question import Question
from hpcdl.planner.scaling import counts, scaling
from hpcdl.planner.whatif import changed
from hpcdl.spec.entry import EntryModel
from hpcdl.units import parse_count


@dataclass(frozen=True)
class Ask:
    """What the planner is asked, in the words of the command line."""

    file: Path
    site: str
    settings: Sequence[str] = ()
    gpus: str | None = None
    nodes: int | None = None
    engine: str = "hpcdl"
    what_if: Sequence[str] = ()
    compare: Path | None = None
    tokens: str | None = None
    weak: bool = False

    @property
    def counts(self) -> tuple[int, ...]:
        """Numbers of devices; none where the experiment says how many."""
        return () if self.gpus is None else counts(self.gpus)

    def request(self, file: Path) -> workflow.Request:
        """``file`` with the same flags, for one number of devices."""
        gpus = self.counts[0] if self.counts else None
        return workflow.Request(file, self.site, self.settings, gpus, self.nodes)


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


def show(ask: Ask, view: View) -> None:
    """Plan, and show what was found.

    Raises:
        InfeasibleError: after showing it, where nothing of it can run.
        UsageError: flags that do not go together, or values that make no sense.
    """
    _check(ask, view)
    if view.plot:
        _plots(view.plot)
    if len(ask.counts) > 1 or ask.tokens:
        _several(ask, view)
    elif ask.compare or ask.what_if:
        _two(ask, view)
    else:
        _one(ask, view)


def _check(ask: Ask, view: View) -> None:
    """Refuse flags of which one would have to be ignored."""
    several = len(ask.counts) > 1
    if ask.compare and ask.what_if:
        raise UsageError("--compare and --what-if each set two plans side by side", "use one of them")
    if several and ask.nodes:
        raise UsageError(f"--nodes {ask.nodes} goes with one number of devices, not with --gpus {ask.gpus}")
    if several and ask.compare:
        raise UsageError(f"--compare goes with one number of devices, not with --gpus {ask.gpus}")
    if ask.weak and not several:
        raise UsageError("--weak lets the batch grow with the devices", "give several: --gpus 64,128,256")
    if view.inspects and (several or ask.tokens or ask.compare or ask.what_if):
        raise UsageError(
            f"{view.inspects} looks at one plan", "give one --gpus, without --tokens, --compare and --what-if"
        )


def _plots(path: Path) -> ModuleType:
    """What draws, if it can draw to ``path``.

    Raises:
        UsageError: neither SVG nor PNG, no such folder, or no matplotlib.
    """
    if path.suffix not in (".svg", ".png"):
        raise UsageError(f"--plot {path} is neither .svg nor .png", "name it, for example, plan.svg")
    if not path.parent.is_dir():
        raise UsageError(f"--plot {path}: there is no folder {path.parent}")
    try:
        from hpcdl.cli import plots
    except ModuleNotFoundError as error:
        raise UsageError(
            f"--plot needs {error.name}, which is an extra", "pip install 'hpcdl[plot]'"
        ) from None
    return plots


def _question(ask: Ask, inputs: workflow.Inputs) -> tuple[Question, int]:
    """What is asked, and for how many devices."""
    if isinstance(inputs.experiment.model, EntryModel):
        raise UsageError(
            "hpcdl plan knows what transformers cost, but nothing of a model of your own (model.entry)",
            f"submit it: it would run {workflow.study(ask.request(ask.file)).decomposition}",
        )
    question = Question(inputs.experiment, inputs.site, find_engine(ask.engine))
    return question, spread(inputs.experiment.resources, inputs.site).ranks


def _one(ask: Ask, view: View) -> None:
    inputs = workflow.read(ask.request(ask.file))
    question, gpus = _question(ask, inputs)
    with render.progress_of("planning") as watch:
        plan = question.plan(gpus, watch)
    if view.json:
        render.print_json(_document(plan, view))
    else:
        _screen(plan, view)
        plan_tables.warnings(plan)
        _warn_of_limits(inputs)
    if view.plot:
        _plots(view.plot).plan(view.plot, plan, chosen(plan, view.explain or 1))
    if plan.infeasible:
        raise InfeasibleError(plan.infeasible)


def _document(plan: Plan, view: View) -> dict[str, Any]:
    """The plan as JSON, with what else was asked for under names of its own."""
    document = plan.to_json()
    candidate = chosen(plan, view.explain or 1)
    if view.explain:
        document["explanation"] = explanation(plan)
    if view.assumptions:
        rows = assumptions(plan.case, candidate.decomposition)
        document["assumptions"] = [asdict(row) for row in rows]
    if view.simulate:
        document["simulation"] = view.simulate.to_json(view.simulate.run(plan, candidate))
    return document


def _screen(plan: Plan, view: View) -> None:
    if view.explain is None:
        plan_tables.plan(plan, view.top)
    else:
        plan_tables.explanation(plan, explain(plan, view.explain))
    candidate = chosen(plan, view.explain or 1)
    if view.assumptions:
        asked = plan.case, candidate.decomposition
        plan_tables.assumptions(assumptions(*asked), untested(*asked))
    if view.simulate:
        with render.busy("simulating"):
            times = view.simulate.run(plan, candidate)
        simulating.table(candidate, times)


def _several(ask: Ask, view: View) -> None:
    tokens = None if ask.tokens is None else _tokens(ask.tokens)
    with render.busy("planning"):
        question, gpus = _question(ask, workflow.read(ask.request(ask.file)))
        question = changed(question, ask.what_if)
        found = scaling(question, ask.counts or (gpus,), weak=ask.weak, tokens=tokens)
    if view.json:
        render.print_json(_asked(question) | found.to_json())
    else:
        scaling_view.table(found)
    if view.plot and found.running:
        _plots(view.plot).scaling(view.plot, found)
    if not found.running:
        raise InfeasibleError(f"{question.experiment.name} can run on none of these numbers of devices")


def _asked(question: Question) -> dict[str, Any]:
    return {
        "experiment": question.experiment.name,
        "site": question.site.name,
        "engine": question.engine.name,
    }


def _two(ask: Ask, view: View) -> None:
    with render.busy("planning"):
        found = _compared(ask)
    if view.json:
        render.print_json(found.to_json())
    else:
        comparing.tables(found)
    runs = any(outcome.best for outcome in found.outcomes)
    if view.plot and runs:
        _plots(view.plot).comparison(view.plot, found)
    if not runs:
        raise InfeasibleError(f"neither {' nor '.join(found.names)} can run")


def _compared(ask: Ask) -> Comparison:
    first, gpus = _question(ask, workflow.read(ask.request(ask.file)))
    if ask.compare is None:
        other, names = changed(first, ask.what_if), ("now", ", ".join(ask.what_if))
        return Comparison(names, (first.ask(gpus), other.ask(gpus)))
    other, others = _question(ask, workflow.read(ask.request(ask.compare)))
    return Comparison(_names(ask.file, ask.compare), (first.ask(gpus), other.ask(others)))


def _names(first: Path, second: Path) -> tuple[str, str]:
    """File names, with their folders where they would be the same."""
    if first.name == second.name:
        return str(first), str(second)
    return first.stem, second.stem


def _tokens(text: str) -> float:
    try:
        return parse_count(text)
    except ValueError as error:
        raise UsageError(f"--tokens: {error}") from None


def _warn_of_limits(inputs: workflow.Inputs) -> None:
    """A plan may look past the limits of a queue; a submission may not."""
    try:
        layout(inputs.experiment.resources, inputs.site)
    except HpcdlError as error:
        render.warning(f"submit would refuse this: {error.message}", error.hint)
