"""``hpcdl site``: its verbs, flags and help. What a verb does is imported when it is called."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hpcdl.cli.flags import Json, Runs, complete_site, site_name

site_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Machines that hpcdl knows.")


class DeviceChoice(StrEnum):
    """What is to compute on a drafted machine."""

    gpu = "gpu"
    cpu = "cpu"


def _complete_scheduler(incomplete: str) -> list[str]:
    from hpcdl.survey.asking import KINDS

    return [kind for kind in KINDS if kind.startswith(incomplete)]


_SITE = "A name from `hpcdl site list`, a site file, or `auto` for the one this is."


@site_app.command("list", epilog="Example: hpcdl site list --json | jq -r '.[].name'")
def site_list(json: Json = False) -> None:
    """List the known machines. The last columns say how far each was verified."""
    from hpcdl.cli import sites

    sites.list_sites(json=json)


_SHOW_EXAMPLES = """\b
Examples:
  hpcdl site show perlmutter
  hpcdl site show perlmutter --field partitions.debug.walltime
"""


@site_app.command("show", epilog=_SHOW_EXAMPLES)
def site_show(
    name: Annotated[str, typer.Argument(metavar="SITE", help=_SITE, autocompletion=complete_site)],
    field: Annotated[
        str | None,
        typer.Option(
            "--field",
            metavar="KEY.KEY",
            help="One value: where it stands, which file won, its source.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Show what is known of a machine. It is printed as a site file, with marks at what nobody verified."""
    from hpcdl.cli import sites

    sites.show_site(site_name(name), field, json=json)


@site_app.command("detect", epilog="What it finds is what --site auto takes: hpcdl plan exp.yaml --site auto")
def site_detect(json: Json = False) -> None:
    """Say which machine this is, and why. Exit code 2 if it is none that is known."""
    from hpcdl.cli import sites

    sites.detect(json=json)


_CHECK_EXAMPLES = """\b
Examples:
  hpcdl site check                     every known file in itself; with the machine, the one that this is
  hpcdl site check mine.yaml --probe   compare with the machine, whatever its name
Exit code 2 if there is an error, 4 if the scheduler cannot be asked.
"""


@site_app.command("check", epilog=_CHECK_EXAMPLES)
def site_check(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SITE]...", help=f"{_SITE} [default: all]", autocompletion=complete_site),
    ] = None,
    probe: Annotated[
        bool | None,
        typer.Option(
            "--probe/--no-probe",
            help="Compare with the machine this is on, by questions that change nothing "
            "[default: where it is the file's machine].",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Check site files, alone and against the machine.

    Told are wrong keys, values that do not go together, and differences to what the scheduler says.
    """
    from hpcdl.cli import checking

    checking.check([site_name(name) for name in names or []], probe=probe, json=json)


_INIT_EXAMPLES = """\b
Examples:
  hpcdl site init                                       print a draft
  hpcdl site init --output mine.yaml --job --partition gpu --account m1234
"""


@site_app.command("init", epilog=_INIT_EXAMPLES)
def site_init(
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", dir_okay=False, help="File to write [default: print it]."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
    scheduler: Annotated[
        str | None,
        typer.Option(
            "--scheduler",
            metavar="KIND",
            help="slurm or pbs [default: whose programs are here].",
            autocompletion=_complete_scheduler,
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the site [default: of the file, or the machine].")
    ] = None,
    device: Annotated[
        DeviceChoice | None,
        typer.Option("--device", help="What computes [default: GPUs if the scheduler has any]."),
    ] = None,
    job: Annotated[
        bool, typer.Option("--job", help="Let a job of a minute on one node say what only it knows.")
    ] = False,
    partition: Annotated[
        str | None, typer.Option("--partition", metavar="QUEUE", help="Where that job goes.")
    ] = None,
    account: Annotated[str | None, typer.Option("--account", help="Who pays for that job.")] = None,
    walltime: Annotated[str, typer.Option("--walltime", help="Its limit, HH:MM:SS.")] = "00:01:00",
    runs: Runs = None,
) -> None:
    """Draft a site file for this machine. It is made from what the scheduler says; nothing is changed."""
    from hpcdl.cli import drafting

    asked = drafting.job(partition, account, walltime) if job else None
    request = drafting.Request(scheduler, name, device.value if device else None, asked, runs)
    drafting.init(request, output, force=force)
