"""The planner as a library: ``plan`` searches, ``estimate`` judges one decomposition.

These four names are stable, with the fields that docs/planner/api.md lists; submodules may change. ``plan``
and ``estimate`` are submodules as well: here their names mean the functions (docs/design/013).
"""

from __future__ import annotations

from hpcdl.planner.plan import Plan, estimate, plan
from hpcdl.planner.rank import Candidate

__all__ = ["Candidate", "Plan", "estimate", "plan"]
