"""``hpcdl list``, ``status`` and whatever else looks at runs: verbs, flags and help, as in ``app``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hpcdl.cli.flags import (
    Json,
    JsonLines,
    Plot,
    Run,
    RunOrSweep,
    Runs,
    SeveralRuns,
    Sweep,
)

run_app = typer.Typer(rich_markup_mode=None)


@run_app.command("list", epilog="Example: hpcdl list --json | jq -r '.[] | select(.state == \"failed\").run'")
def list_runs(
    sweep: Annotated[
        str | None, typer.Argument(metavar="[SWEEP]", help="List the runs of this sweep only.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", "-a", help="List each run of a sweep.")] = False,
    runs: Runs = None,
    json: Json = False,
) -> None:
    """List all runs with their state. A sweep is one row."""
    from hpcdl.cli import watching

    watching.list_runs(runs, watching.Listed(sweep, every), json=json)


@run_app.command(epilog="Example: hpcdl status last")
def status(run: RunOrSweep, runs: Runs = None, json: Json = False) -> None:
    """Show the state and progress of a run. If it failed, which rank failed first. Of a sweep, its points."""
    from hpcdl.cli import watching

    watching.status(run, runs, json=json)


@run_app.command(epilog="Example: hpcdl watch last")
def watch(
    run: Run,
    interval: Annotated[
        float, typer.Option("--interval", "-i", min=0.1, metavar="SECONDS", help="Between two looks.")
    ] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print one look and end; needs no terminal.")] = False,
    runs: Runs = None,
) -> None:
    """Watch a run on the whole screen. Loss, rates, time left, ranks and logs; q detaches."""
    from hpcdl.cli import live

    live.watch(run, runs, interval, once=once)


_LOGS_EXAMPLES = """\b
Examples:
  hpcdl logs last --follow
  hpcdl logs last --rank 0 --rank 7 --tail 50
  hpcdl logs last --grep 'loss (nan|inf)'
  hpcdl logs last --attempt 1 --json | jq -r 'select(.rank == 0).text'
"""


@run_app.command(epilog=_LOGS_EXAMPLES)
def logs(
    run: Run,
    rank: Annotated[
        list[int] | None, typer.Option("--rank", "-r", min=0, help="Only this rank; may be given again.")
    ] = None,
    attempt: Annotated[
        int | None, typer.Option("--attempt", "-a", min=1, help="Only this attempt [default: newest].")
    ] = None,
    grep: Annotated[
        str | None,
        typer.Option("--grep", metavar="REGEX", help="Only lines in which it is found; exit code 1 if none."),
    ] = None,
    tail: Annotated[
        int | None, typer.Option("--tail", min=0, metavar="N", help="Begin with the last N lines.")
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Each rank's lines, also where several say the same.")
    ] = False,
    follow: Annotated[
        bool,
        typer.Option("--follow", "-f", help="Go on until the run is over, attempt after attempt."),
    ] = False,
    runs: Runs = None,
    json: JsonLines = False,
) -> None:
    """Print the logs of a run. All ranks in the order of time, what several say only once."""
    from hpcdl.cli.logs import LogChoice
    from hpcdl.cli.logs import logs as show

    show(run, runs, LogChoice(tuple(rank or ()), attempt, grep, tail, every, json), follow=follow)


_LAUNCH_EXAMPLES = """\b
Examples:
  hpcdl launch-info last
  hpcdl launch-info last --attempt 2
  hpcdl launch-info last --json | jq -r '.ranks[] | [.rank, .host, .cpus] | @tsv'
"""


@run_app.command("launch-info", epilog=_LAUNCH_EXAMPLES)
def launch_info(
    run: Run,
    attempt: Annotated[
        int | None, typer.Option("--attempt", "-a", min=1, help="Which attempt [default: newest].")
    ] = None,
    runs: Runs = None,
    json: Json = False,
) -> None:
    """Show where each rank runs, and how fast. Exit code 5 if one is where it cannot run."""
    from hpcdl.cli import launching

    launching.launch_info(run, runs, attempt, json=json)


_RESULTS_EXAMPLES = """\b
Examples:
  hpcdl results last --sort last_loss
  hpcdl results SWEEP --csv results.csv --plot loss.svg --over training.optimizer.lr
"""


@run_app.command(epilog=_RESULTS_EXAMPLES)
def results(
    sweep: Sweep,
    sort: Annotated[
        str | None,
        typer.Option("--sort", metavar="COLUMN", help="Order by a swept key or a number, e.g. last_loss."),
    ] = None,
    csv: Annotated[
        Path | None,
        typer.Option("--csv", metavar="FILE", dir_okay=False, help="Write them as comma-separated values."),
    ] = None,
    plot: Plot = None,
    over: Annotated[
        str | None, typer.Option("--over", metavar="KEY", help="Of --plot: the swept key along the axis.")
    ] = None,
    runs: Runs = None,
    json: Json = False,
) -> None:
    """Show what the points of a sweep came to. One line a point; the best is marked."""
    from hpcdl.cli.sweeps import results as shown

    shown.show(sweep, runs, shown.View(sort, csv, plot, over, json))


_REPORT_EXAMPLES = """\b
Examples:
  hpcdl report last
  hpcdl report run-a run-b --output both.html
"""


@run_app.command(epilog=_REPORT_EXAMPLES)
def report(
    run: SeveralRuns,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", dir_okay=False, help="File to write [default: RUN.html]."
        ),
    ] = None,
    runs: Runs = None,
) -> None:
    """Write one HTML file about a run, or about several. It opens without a network."""
    from hpcdl.cli import reporting

    reporting.report(run, runs, output)


_COMPARE_EXAMPLES = """\b
Examples:
  hpcdl compare run-a run-b
  hpcdl compare run-a run-b run-c --plot losses.svg
  hpcdl compare run-a run-b --json | jq .figures.last_loss
"""


@run_app.command(epilog=_COMPARE_EXAMPLES)
def compare(run: SeveralRuns, plot: Plot = None, runs: Runs = None, json: Json = False) -> None:
    """Set runs side by side. What was asked differently, and what came of it."""
    from hpcdl.cli import reporting

    reporting.compare(run, runs, plot, json=json)


@run_app.command("slow-nodes", epilog="Example: hpcdl slow-nodes --runs ~/runs")
def slow_nodes(runs: Runs = None, json: Json = False) -> None:
    """List nodes that were slower than others, run after run. They did the same work in the same run."""
    from hpcdl.cli import slowness

    slowness.show(runs, json=json)


@run_app.command(epilog="Example: hpcdl collect last --output report.tar.gz")
def collect(
    run: Run,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", dir_okay=False, help="Archive to write [default: RUN.tar.gz]."
        ),
    ] = None,
    runs: Runs = None,
) -> None:
    """Pack a run into one archive. Its specification, script, logs and metrics, without secrets."""
    from hpcdl.cli import watching

    watching.collect(run, runs, output)
