"""The command line: verbs, flags and help. What a verb does is imported when it is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hpcdl.cli.flags import (
    After,
    Assumptions,
    AtOnce,
    Compare,
    DryRun,
    EngineName,
    Experiment,
    Explain,
    ExplainScript,
    Follow,
    Gpus,
    Json,
    Nodes,
    PlanGpus,
    Plot,
    ProfileFile,
    Repeat,
    Run,
    RunOrSweep,
    Runs,
    Settings,
    SettingsAgain,
    Simulate,
    SiteAgain,
    SiteOption,
    SkipInfeasible,
    Tokens,
    Top,
    Wait,
    Weak,
    WhatIf,
)
from hpcdl.cli.run_verbs import run_app
from hpcdl.cli.site_verbs import site_app

# Plain help: drawing it with rich would take longer than the rest of `hpcdl --help` together.
app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="Plan, launch and run deep-learning training on HPC machines.",
    epilog="Start with: hpcdl plan examples/quickstart.yaml",
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"hpcdl {version('hpcdl')}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Plan, launch and run deep-learning training on HPC machines."""


_PLAN_EXAMPLES = """\b
Examples:
  hpcdl plan exp.yaml --site perlmutter --gpus 64 --explain 1
  hpcdl plan exp.yaml --site perlmutter --gpus 64-1024 --tokens 300B
  hpcdl plan exp.yaml --site perlmutter --gpus 64 --what-if link.inter=2x
  hpcdl plan exp.yaml --site perlmutter --gpus 64 --simulate jitter=0.05,slow=0.001:1.3
  hpcdl plan exp.yaml --compare other.yaml --plot both.svg
"""


@app.command(epilog=_PLAN_EXAMPLES)
def plan(
    experiment: Experiment,
    site: SiteOption = "local",
    gpus: PlanGpus = None,
    nodes: Nodes = None,
    settings: Settings = None,
    engine: EngineName = "hpcdl",
    profile: ProfileFile = None,
    what_if: WhatIf = None,
    compare: Compare = None,
    tokens: Tokens = None,
    weak: Weak = False,
    top: Top = 10,
    explain: Explain = None,
    assumptions: Assumptions = False,
    simulate: Simulate = None,
    plot: Plot = None,
    json: Json = False,
) -> None:
    """Show which decompositions fit and how fast each is. Why the others lose, too."""
    from hpcdl.cli.plans.asking import Ask, View
    from hpcdl.cli.plans.planning import show

    disturbed = None
    if simulate is not None:
        from hpcdl.cli.plans.simulating import simulation

        disturbed = simulation(simulate)
    ask = Ask(
        file=experiment,
        site=site,
        settings=settings or [],
        gpus=gpus,
        nodes=nodes,
        engine=engine,
        profile=profile,
        what_if=what_if or [],
        compare=compare,
        tokens=tokens,
        weak=weak,
    )
    show(ask, View(top, explain, assumptions, disturbed, plot, json))


_SUBMIT_EXAMPLES = """\b
Examples:
  hpcdl submit exp.yaml --nodes 2 --set training.steps=1000 --follow
  hpcdl submit exp.yaml --site perlmutter --nodes 2 --dry-run --explain
  hpcdl submit exp.yaml --repeat 5 --at-once 2
  hpcdl submit next.yaml --after last
  hpcdl submit sweep.yaml --dry-run
"""


@app.command(epilog=_SUBMIT_EXAMPLES)
def submit(
    experiment: Experiment,
    site: SiteOption = "local",
    gpus: Gpus = None,
    nodes: Nodes = None,
    settings: Settings = None,
    after: After = None,
    repeat: Repeat = None,
    at_once: AtOnce = None,
    skip_infeasible: SkipInfeasible = False,
    dry_run: DryRun = False,
    explain: ExplainScript = False,
    wait: Wait = False,
    follow: Follow = False,
    runs: Runs = None,
    json: Json = False,
) -> None:
    """Plan, write the batch script, submit it."""
    from hpcdl.cli import submitting
    from hpcdl.workflow.studies.studying import Request
    from hpcdl.workflow.sweeps.sweeping import is_sweep

    ask = submitting.Ask(
        Request(experiment, site, settings or [], gpus, nodes), after, repeat, at_once, skip_infeasible
    )
    if is_sweep(ask.request) and not explain:
        from hpcdl.cli.sweeps import drafting
        from hpcdl.cli.sweeps import submitting as sweeps

        if dry_run:
            drafting.show(ask, runs, json=json)
        else:
            sweeps.submit(ask, runs, watch=submitting.Watch.chosen(wait=wait, follow=follow), json=json)
    elif explain:
        submitting.show_origins(ask, runs, dry_run=dry_run, json=json)
    elif dry_run:
        submitting.show_script(ask, runs, json=json)
    else:
        submitting.submit(ask, runs, watch=submitting.Watch.chosen(wait=wait, follow=follow), json=json)


@app.command(epilog="Example: hpcdl cancel last")
def cancel(run: RunOrSweep, runs: Runs = None) -> None:
    """End a run, or what is not over of a sweep."""
    from hpcdl.cli import watching

    watching.cancel(run, runs)


_RESUME_EXAMPLES = """\b
Examples:
  hpcdl resume last --follow
  hpcdl resume last --gpus 8
  hpcdl resume last --nodes 4 --set parallelism.data=8 --dry-run
  hpcdl resume last --set resources.walltime=12:00:00
  hpcdl resume SWEEP --failed
"""


@app.command(epilog=_RESUME_EXAMPLES)
def resume(
    run: RunOrSweep,
    gpus: Gpus = None,
    nodes: Nodes = None,
    settings: SettingsAgain = None,
    site: SiteAgain = None,
    failed: Annotated[bool, typer.Option("--failed", help="Of a sweep: the points that failed.")] = False,
    cancelled: Annotated[
        bool, typer.Option("--cancelled", help="Of a sweep: the points that were cancelled.")
    ] = False,
    dry_run: DryRun = False,
    wait: Wait = False,
    follow: Follow = False,
    runs: Runs = None,
    json: Json = False,
) -> None:
    """Submit a run that ended early again. It continues from its newest checkpoint, on more GPUs if asked.

    Of a sweep, the points that were not submitted yet or that paused, or those that failed.
    """
    from hpcdl.cli import submitting
    from hpcdl.cli.sweeps import submitting as sweeps
    from hpcdl.workflow.studies.reshaping import Change

    again = submitting.Again(run, runs, Change(tuple(settings or ()), gpus, nodes, site))
    watch = submitting.Watch.chosen(wait=wait, follow=follow)
    if sweeps.resumed(again, sweeps.Which(failed, cancelled, dry_run), watch, json=json):
        return
    if dry_run:
        submitting.show_next(again, json=json)
    else:
        submitting.resume(again, watch=watch, json=json)


_ADVANCE_EXAMPLES = """\b
Examples:
  hpcdl advance last
  */10 * * * * cd $HOME/experiments && hpcdl advance RUN    # a line of crontab, on a login node
"""


@app.command(epilog=_ADVANCE_EXAMPLES)
def advance(
    run: Run,
    attempt: Annotated[
        int | None, typer.Option("--attempt", min=1, hidden=True, help="Which attempt calls this at its end.")
    ] = None,
    ended: Annotated[str, typer.Option("--ended", hidden=True, help="How it ended.")] = "well",
    runs: Runs = None,
) -> None:
    """Submit the next attempt if the run goes on. Anybody may, at any time."""
    from hpcdl.cli import advancing

    advancing.advance(run, runs, None if attempt is None else (attempt, ended))


@app.command(hidden=True)
def completed(runs: Annotated[list[Path], typer.Argument(metavar="RUN...")]) -> None:
    """Exit with 75 unless all of these runs have completed. A job that waited for them calls it."""
    from hpcdl.cli import advancing

    advancing.check_completed(runs)


@app.command(epilog="Example: hpcdl export last my-model --step 500")
def export(
    run: Run,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; it must not exist yet.")],
    step: Annotated[
        int | None, typer.Option("--step", min=1, help="Which checkpoint [default: newest].")
    ] = None,
    runs: Runs = None,
) -> None:
    """Write weights in Hugging Face layout. Of the newest checkpoint or another; GPT-2 or Llama."""
    from hpcdl.cli import exporting

    exporting.export(run, runs, out, step)


def _complete_kind(incomplete: str) -> list[str]:
    return [kind for kind in ("experiment", "site") if kind.startswith(incomplete)]


@app.command(epilog="Example: hpcdl schema experiment > experiment.schema.json")
def schema(
    kind: Annotated[
        str,
        typer.Argument(metavar="experiment|site", help="Which file's schema.", autocompletion=_complete_kind),
    ],
) -> None:
    """Print the JSON Schema of a kind of file, for editors."""
    from hpcdl.cli import describing

    describing.schema(kind)


app.add_typer(run_app)
app.add_typer(site_app, name="site")
