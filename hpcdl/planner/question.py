"""One question to the planner, asked as often as a view needs; an answer is a plan, or why there is none."""

from __future__ import annotations

from dataclasses import dataclass

from hpcdl.errors import HpcdlError, InfeasibleError, SiteError
from hpcdl.planner.engines import HPCDL, Engine
from hpcdl.planner.plan import Plan, plan
from hpcdl.planner.rank import Candidate
from hpcdl.planner.search import Watch
from hpcdl.sites.profile import Profile
from hpcdl.sites.site import Site
from hpcdl.spec.experiment import Experiment


@dataclass(frozen=True)
class Outcome:
    """What came of a question for so many devices."""

    gpus: int
    plan: Plan | None = None
    refusal: HpcdlError | None = None

    @property
    def best(self) -> Candidate | None:
        """The fastest candidate that can run."""
        return self.plan.best if self.plan and not self.refusal else None


@dataclass(frozen=True)
class Question:
    """What is trained, where, by which engine; ``profile`` None is the shipped one of the devices."""

    experiment: Experiment
    site: Site
    engine: Engine = HPCDL
    profile: Profile | None = None

    def plan(self, gpus: int, watch: Watch | None = None) -> Plan:
        """The plan for so many devices; ``watch`` as of ``planner.plan``.

        Raises:
            InfeasibleError, SiteError, UsageError: as ``planner.plan``.
        """
        return plan(self.experiment, self.site, gpus, self.profile, self.engine, watch)

    def ask(self, gpus: int, watch: Watch | None = None) -> Outcome:
        """The same, where a number of devices that cannot run is an answer among others."""
        try:
            found = self.plan(gpus, watch)
        except (InfeasibleError, SiteError) as error:
            return Outcome(gpus, refusal=error)
        refusal = InfeasibleError(found.infeasible) if found.infeasible else None
        return Outcome(gpus, found, refusal)
