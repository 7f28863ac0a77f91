"""What schedulers and nodes said, and the machines they described."""

from pathlib import Path

from hpcdl.sites.site import Site
from hpcdl.spec import load
from hpcdl.survey import node, pbs, slurm

RECORDINGS = Path(__file__).parent / "recordings"


def text(name: str) -> str:
    return (RECORDINGS / name).read_text()


def slurm_answers(prefix: str = "slurm") -> list[str]:
    return [text(f"{prefix}-{what}.out") for what in ("config", "partitions", "nodes")]


def pbs_answers(nodes: str = "pbsnodes-a-json.out") -> list[str]:
    return [text("qstat-Bf-json.out"), text("qstat-Qf-json.out"), text(nodes)]


PLAIN = slurm.machine(*slurm_answers())
MIXED = slurm.machine(*slurm_answers("slurm-mixed"))
PBS = pbs.machine(*pbs_answers())
A100, MI250X, VIRTUAL = (
    node.parse(text(f"node-{name}.json")) for name in ("a100", "mi250x", "virtual-machine")
)


def site(content: str, source: str = "mine.yaml") -> Site:
    """The site that this text describes, knowing where each value stands."""
    document = load.parse(content, source)
    return load.validate(document, Site).read_at(document)
