"""A model of the user's own: a function that the engine calls, and what it is called with."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from hpcdl.spec.frozen import Frozen
from hpcdl.spec.model import Model


class EntryModel(Frozen):
    """``entry: package.module:function``; the function returns an ``hpcdl.engine.program.Program``.

    Nothing is known of its shape before it is called on the compute nodes, so the planner has nothing to say
    about it, and it is spread over data and pipeline only.
    """

    entry: str = Field(
        pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$", description="package.module:function"
    )
    arguments: dict[str, Any] = Field(
        default_factory=dict, description="keyword arguments that the function is called with"
    )
    folder: str = Field(
        ".", description="where Python looks for the package first; relative to the experiment file"
    )


def is_own(given: Any) -> bool:
    """Whether what stands under ``model:`` is a model of the user's own."""
    return isinstance(given, EntryModel) or (isinstance(given, dict) and "entry" in given)


AnyModel = Annotated[
    Annotated[Model, Tag("Model")] | Annotated[EntryModel, Tag("EntryModel")],
    Discriminator(lambda given: "EntryModel" if is_own(given) else "Model"),
]
"""What may stand under ``model:``."""
