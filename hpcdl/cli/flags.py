"""Flags and arguments of the command line: what they take, their help, and how a shell completes them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

AUTO = "auto"


def _complete_engine(incomplete: str) -> list[str]:
    from hpcdl.planner.engines import ENGINES

    return [name for name in ENGINES if name.startswith(incomplete)]


def _complete_what_if(incomplete: str) -> list[str]:
    from hpcdl.planner.whatif import KEYS

    return [f"{name}=" for name in KEYS if name.startswith(incomplete)]


def complete_site(incomplete: str) -> list[str]:
    """Names of sites that begin so."""
    from hpcdl.sites.load import LOCAL, available

    return [name for name in (LOCAL, AUTO, *available()) if name.startswith(incomplete)]


def site_name(given: str) -> str:
    """The site's name; ``auto`` is the machine this is."""
    if given != AUTO:
        return given
    from hpcdl.cli.sites import this_machine

    return this_machine()


Experiment = Annotated[Path, typer.Argument(metavar="EXP", help="Experiment file (YAML).")]
SiteOption = Annotated[
    str,
    typer.Option(
        "--site",
        "-s",
        envvar="HPCDL_SITE",
        help="Machine: a name from `hpcdl site list`, a site file, or `auto` for the one this is.",
        autocompletion=complete_site,
        callback=site_name,
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
SettingsAgain = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one key from now on, e.g. checkpoint.every=50; what is learned cannot change.",
    ),
]
SiteAgain = Annotated[
    str | None,
    typer.Option(
        "--site",
        "-s",
        help="Read this site file as it is now [default: the run's, as it was when it was submitted].",
        autocompletion=complete_site,
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the batch script; write and submit nothing.")]
Wait = Annotated[bool, typer.Option("--wait", help="Return when the run is over, with its exit code.")]
Follow = Annotated[
    bool, typer.Option("--follow", "-f", help="Show progress until the run is over; Ctrl-C detaches.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object or array instead of text.")]
JsonLines = Annotated[
    bool, typer.Option("--json", help="Print one JSON object a line: rank, text, time, attempt.")
]
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

SeveralRuns = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN...",
        help="Run ids, unambiguous prefixes, paths, or `last`.",
        autocompletion=_complete_run,
    ),
]
RunOrSweep = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="Run id or name of a sweep, an unambiguous prefix, a path, or `last`.",
        autocompletion=_complete_run,
    ),
]


def _complete_sweep(context: typer.Context, incomplete: str) -> list[str]:
    from hpcdl.runs import store
    from hpcdl.runs.sweeps import groups

    known = groups.names(store.runs_folder(context.params.get("runs")))
    return [name for name in [*reversed(known), "last"] if name.startswith(incomplete)]


Sweep = Annotated[
    str,
    typer.Argument(
        metavar="SWEEP", help="A sweep's name or its beginning, or `last`.", autocompletion=_complete_sweep
    ),
]
SkipInfeasible = Annotated[
    bool, typer.Option("--skip-infeasible", help="Of a sweep: leave out the points that cannot run.")
]
ExplainScript = Annotated[
    bool,
    typer.Option("--explain", help="With --dry-run: who asked for each line, and where that is written."),
]
After = Annotated[
    str | None,
    typer.Option(
        "--after",
        metavar="RUN[,RUN...][:ok|any|failed]",
        help="Start when these runs of the same site have completed (:any ended, :failed failed).",
        autocompletion=_complete_run,
    ),
]
Repeat = Annotated[
    int | None,
    typer.Option("--repeat", min=1, metavar="N", help="N runs, each with the next seed, as one job array."),
]
AtOnce = Annotated[
    int | None,
    typer.Option("--at-once", min=1, metavar="N", help="Of --repeat or a sweep, run at most N at a time."),
]
PlanGpus = Annotated[
    str | None,
    typer.Option(
        "--gpus",
        "-g",
        metavar="N[,N...]|N-M",
        help="Devices in all, one rank each; several numbers, or a range that doubles (64-1024), grows "
        "by a factor (64-4096:x4) or by a step (64-512:+64), are shown side by side.",
    ),
]
EngineName = Annotated[
    str,
    typer.Option(
        "--engine",
        metavar="NAME",
        help="What is to run it; `any` knows no limits.",
        autocompletion=_complete_engine,
    ),
]
ProfileFile = Annotated[
    Path | None,
    typer.Option("--profile", metavar="FILE", help="Efficiencies measured on this machine (YAML)."),
]
WhatIf = Annotated[
    list[str] | None,
    typer.Option(
        "--what-if",
        metavar="KEY=VALUE",
        help="Plan for a changed machine too, e.g. link.inter=2x or device.memory=80GiB.",
        autocompletion=_complete_what_if,
    ),
]
Compare = Annotated[
    Path | None,
    typer.Option("--compare", metavar="EXP", help="Set another experiment's plan beside this one's."),
]
Tokens = Annotated[
    str | None,
    typer.Option("--tokens", metavar="COUNT", help="Time and node-hours to so many tokens, e.g. 300B."),
]
Weak = Annotated[bool, typer.Option("--weak", help="With several --gpus: the batch grows with the devices.")]
Top = Annotated[int, typer.Option("--top", "-k", min=1, help="How many candidates to show.")]
Explain = Annotated[
    int | None,
    typer.Option("--explain", "-e", min=1, metavar="RANK", help="Show where a candidate's time goes."),
]
Assumptions = Annotated[
    bool, typer.Option("--assumptions", help="Show all that the estimate assumes, and where it is from.")
]
Simulate = Annotated[
    str | None,
    typer.Option(
        "--simulate",
        metavar="KEY=VALUE,...",
        help="Simulate steps in which ranks vary (jitter=0.05), are slow (slow=0.001:1.3) or pause "
        "(pause=0.001:0.5).",
    ),
]
Plot = Annotated[
    Path | None,
    typer.Option("--plot", metavar="FILE", help="Draw what is shown, as .svg or .png (needs hpcdl[plot])."),
]
