"""The command line: verbs, flags and help. What a verb does is imported when it is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hpcdl.cli.flags import (
    Assumptions,
    Compare,
    EngineName,
    Experiment,
    Explain,
    Gpus,
    Json,
    Nodes,
    PlanGpus,
    Plot,
    ProfileFile,
    Run,
    Runs,
    Settings,
    Simulate,
    SiteOption,
    Tokens,
    Top,
    Weak,
    WhatIf,
)

# Plain help: drawing it with rich would take longer than the rest of `hpcdl --help` together.
app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="Plan, launch and run deep-learning training on HPC machines.",
    epilog="Start with: hpcdl plan examples/quickstart.yaml",
)
site_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Machines that hpcdl knows.")
app.add_typer(site_app, name="site")


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
    """Show which decompositions fit, how fast each will be and why the others lose."""
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


@app.command(epilog="Example: hpcdl submit exp.yaml --nodes 2 --set training.steps=1000 --follow")
def submit(
    experiment: Experiment,
    site: SiteOption = "local",
    gpus: Gpus = None,
    nodes: Nodes = None,
    settings: Settings = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the batch script; write and submit nothing.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Return when the run is over, with its exit code.")
    ] = False,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Show progress until the run is over; Ctrl-C detaches.")
    ] = False,
    runs: Runs = None,
    json: Json = False,
) -> None:
    """Plan, write the batch script, submit it."""
    from hpcdl.cli import submitting
    from hpcdl.workflow import Request

    request = Request(experiment, site, settings or [], gpus, nodes)
    if dry_run:
        submitting.show_script(request)
    else:
        submitting.submit(request, runs, watch=submitting.Watch.chosen(wait=wait, follow=follow), json=json)


@app.command("list")
def list_runs(runs: Runs = None, json: Json = False) -> None:
    """List all runs with their state."""
    from hpcdl.cli import watching

    watching.list_runs(runs, json=json)


@app.command()
def status(run: Run, runs: Runs = None, json: Json = False) -> None:
    """Show the state of a run, its progress and, if it failed, which rank failed first."""
    from hpcdl.cli import watching

    watching.status(run, runs, json=json)


@app.command(epilog="Example: hpcdl logs last --rank 0 --follow")
def logs(
    run: Run,
    rank: Annotated[int | None, typer.Option("--rank", "-r", min=0, help="Only this rank.")] = None,
    attempt: Annotated[
        int | None, typer.Option("--attempt", "-a", min=1, help="Which attempt [default: newest].")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the run is over; Ctrl-C stops.")
    ] = False,
    runs: Runs = None,
) -> None:
    """Print the logs of a run, each line with its rank."""
    from hpcdl.cli import watching

    watching.logs(run, runs, watching.LogChoice(rank, attempt), follow=follow)


@app.command()
def cancel(run: Run, runs: Runs = None) -> None:
    """Ask the scheduler to end a run."""
    from hpcdl.cli import watching

    watching.cancel(run, runs)


@app.command()
def resume(
    run: Run,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Show progress until the run is over.")
    ] = False,
    runs: Runs = None,
) -> None:
    """Submit a run that ended early again; it continues from its newest checkpoint."""
    from hpcdl.cli import submitting

    submitting.resume(run, runs, follow=follow)


@app.command(epilog="Example: hpcdl collect last --output report.tar.gz")
def collect(
    run: Run,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Archive to write [default: RUN.tar.gz]."),
    ] = None,
    runs: Runs = None,
) -> None:
    """Pack a run's specification, script, logs and metrics into one archive."""
    from hpcdl.cli import watching

    watching.collect(run, runs, output)


@app.command(epilog="Example: hpcdl export last my-model --step 500")
def export(
    run: Run,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; it must not exist yet.")],
    step: Annotated[
        int | None, typer.Option("--step", min=1, help="Which checkpoint [default: newest].")
    ] = None,
    runs: Runs = None,
) -> None:
    """Write a checkpoint's weights in Hugging Face layout (GPT-2 or Llama)."""
    from hpcdl.cli import exporting

    exporting.export(run, runs, out, step)


@app.command(epilog="Example: hpcdl schema experiment > experiment.schema.json")
def schema(
    kind: Annotated[str, typer.Argument(metavar="experiment|site", help="Which file's schema.")],
) -> None:
    """Print the JSON Schema of experiment or site files, for editors."""
    from hpcdl.cli import describing

    describing.schema(kind)


@site_app.command("list")
def site_list(json: Json = False) -> None:
    """List the machines that have a site file."""
    from hpcdl.cli import describing

    describing.list_sites(json=json)


@site_app.command("show")
def site_show(
    name: Annotated[
        str, typer.Argument(metavar="SITE", help="A name from `hpcdl site list`, or a site file.")
    ],
    json: Json = False,
) -> None:
    """Show what is known of a machine."""
    from hpcdl.cli import describing

    describing.show_site(name, json=json)
