"""The command line: verbs, flags and help. What a verb does is imported when it is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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


def _complete_engine(incomplete: str) -> list[str]:
    from hpcdl.planner.engines import ENGINES

    return [name for name in ENGINES if name.startswith(incomplete)]


def _complete_what_if(incomplete: str) -> list[str]:
    from hpcdl.planner.whatif import KEYS

    return [f"{name}=" for name in KEYS if name.startswith(incomplete)]


def _complete_site(incomplete: str) -> list[str]:
    from hpcdl.sites.load import LOCAL, available

    return [name for name in (LOCAL, *available()) if name.startswith(incomplete)]


Experiment = Annotated[Path, typer.Argument(metavar="EXP", help="Experiment file (YAML).")]
SiteOption = Annotated[
    str,
    typer.Option(
        "--site",
        "-s",
        envvar="HPCDL_SITE",
        help="Machine: a name from `hpcdl site list`, or a site file.",
        autocompletion=_complete_site,
    ),
]
Gpus = Annotated[int | None, typer.Option("--gpus", "-g", min=1, help="Devices in all, one rank each.")]
Nodes = Annotated[
    int | None,
    typer.Option(
        "--nodes", "-N", min=1, help="Whole nodes; with --gpus, spread those devices over so many nodes."
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change one key of the experiment, e.g. training.steps=50."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object or array instead of a table.")]
Runs = Annotated[
    Path | None,
    typer.Option("--runs", metavar="DIR", help="Folder of runs [default: $HPCDL_RUNS or ./runs]."),
]


def _complete_run(context: typer.Context, incomplete: str) -> list[str]:
    from hpcdl.runs import store

    known = [folder.path.name for folder in store.all_runs(store.runs_folder(context.params.get("runs")))]
    return [name for name in [*reversed(known), "last"] if name.startswith(incomplete)]


Run = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="Run id, an unambiguous prefix, a path, or `last`.", autocompletion=_complete_run
    ),
]


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
    gpus: Annotated[
        str | None,
        typer.Option(
            "--gpus",
            "-g",
            metavar="N[,N...]|N-M",
            help="Devices in all, one rank each; several numbers, or a range that doubles (64-1024), grows "
            "by a factor (64-4096:x4) or by a step (64-512:+64), are shown side by side.",
        ),
    ] = None,
    nodes: Nodes = None,
    settings: Settings = None,
    engine: Annotated[
        str,
        typer.Option(
            "--engine",
            metavar="NAME",
            help="What is to run it; `any` knows no limits.",
            autocompletion=_complete_engine,
        ),
    ] = "hpcdl",
    profile: Annotated[
        Path | None,
        typer.Option("--profile", metavar="FILE", help="Efficiencies measured on this machine (YAML)."),
    ] = None,
    what_if: Annotated[
        list[str] | None,
        typer.Option(
            "--what-if",
            metavar="KEY=VALUE",
            help="Plan for a changed machine too, e.g. link.inter=2x or device.memory=80GiB.",
            autocompletion=_complete_what_if,
        ),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option("--compare", metavar="EXP", help="Set another experiment's plan beside this one's."),
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option("--tokens", metavar="COUNT", help="Time and node-hours to so many tokens, e.g. 300B."),
    ] = None,
    weak: Annotated[
        bool, typer.Option("--weak", help="With several --gpus: the batch grows with the devices.")
    ] = False,
    top: Annotated[int, typer.Option("--top", "-k", min=1, help="How many candidates to show.")] = 10,
    explain: Annotated[
        int | None,
        typer.Option("--explain", "-e", min=1, metavar="RANK", help="Show where a candidate's time goes."),
    ] = None,
    assumptions: Annotated[
        bool, typer.Option("--assumptions", help="Show all that the estimate assumes, and where it is from.")
    ] = False,
    simulate: Annotated[
        str | None,
        typer.Option(
            "--simulate",
            metavar="KEY=VALUE,...",
            help="Simulate steps in which ranks vary (jitter=0.05), are slow (slow=0.001:1.3) or pause "
            "(pause=0.001:0.5).",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", metavar="FILE", help="Draw what is shown, as .svg or .png (needs hpcdl[plot])."
        ),
    ] = None,
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
