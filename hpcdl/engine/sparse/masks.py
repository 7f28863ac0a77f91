"""Which matrices are pruned, and which elements of one are kept."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from fnmatch import fnmatchcase

import torch

from hpcdl.errors import EngineError
from hpcdl.spec.training import Pruning

_USUAL: tuple[str, ...] = Pruning.model_fields["exclude"].default  # not every model has those names


def prunable(shapes: Mapping[str, tuple[int, ...]], exclude: tuple[str, ...]) -> list[str]:
    """The matrices that are pruned, in an order that all ranks have in common.

    Args:
        shapes: of every parameter of the model, by name.
        exclude: patterns of names of those that stay whole, as a shell has them.

    Raises:
        EngineError: a pattern fits no parameter, or nothing is left to be pruned.
    """
    for pattern in exclude:
        if pattern not in _USUAL and not any(fnmatchcase(name, pattern) for name in shapes):
            close = difflib.get_close_matches(pattern, shapes, n=3, cutoff=0.3) or list(shapes)[:3]
            raise EngineError(
                f"training.pruning.exclude {pattern!r} fits no parameter of the model",
                f"the closest names are {', '.join(close)}",
            )
    matrices = [name for name, shape in shapes.items() if len(shape) == 2]
    left = [name for name in matrices if not any(fnmatchcase(name, pattern) for pattern in exclude)]
    if not left:
        raise EngineError(
            f"training.pruning.exclude {list(exclude)} leaves none of {len(matrices)} matrices to be pruned",
            "remove a pattern, or training.pruning",
        )
    return sorted(left)


def kept_and_of(pattern: str) -> tuple[int, int]:
    """The numbers of N:M."""
    kept, of = map(int, pattern.split(":"))
    return kept, of


def largest_of_each(weights_OI: torch.Tensor, pattern: str) -> torch.Tensor:
    """A mask of the N largest of every M that lie side by side in a row; of equal ones the first.

    Shape:
        weights_OI: M divides I. The answer has its shape and is boolean.
    """
    kept, of = kept_and_of(pattern)
    groups = weights_OI.abs().view(-1, of)
    largest = groups.argsort(dim=1, descending=True, stable=True)[:, :kept]
    mask = torch.zeros_like(groups, dtype=torch.bool)
    return mask.scatter_(1, largest, value=True).view(weights_OI.shape)


def refuse_width(name: str, width: int, pattern: str) -> None:
    """Stop where the inputs of a matrix that ranks hold together are not whole groups of M.

    Raises:
        EngineError: naming the matrix.
    """
    _, of = kept_and_of(pattern)
    if width % of:
        raise EngineError(
            f"training.pruning.pattern {pattern}: {name} has {width} inputs a block, which {of} does not "
            "divide",
            "exclude the matrix, or cut its inputs over fewer ranks (parallelism.x, y)",
        )
