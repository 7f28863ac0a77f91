"""What a rank's program reads its place from: the variables that torchrun documents."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpcdl.engine.ranks import Place

if TYPE_CHECKING:  # needed before the log is open, when nothing heavy may be loaded
    from hpcdl.spec.job import Layout


def own_place(place: Place, layout: Layout) -> dict[str, str]:
    """Which rank it is; the names are PyTorch's."""
    return {
        "RANK": str(place.rank),
        "LOCAL_RANK": str(place.local_rank),
        "WORLD_SIZE": str(place.world_size),
        "LOCAL_WORLD_SIZE": str(layout.ranks_per_node),
    }


def as_torchrun(place: Place, layout: Layout, master: tuple[str, str]) -> dict[str, str]:
    """All that a program finds which torchrun starts (pytorch.org/docs/stable/elastic/run.html).

    Args:
        place: this rank.
        layout: of all ranks; those of a node are numbered in a row.
        master: address and port of the store, on the node of rank 0.
    """
    return own_place(place, layout) | {
        "GROUP_RANK": str(place.rank // layout.ranks_per_node),
        "GROUP_WORLD_SIZE": str(layout.nodes),
        "ROLE_NAME": "default",
        "ROLE_RANK": str(place.rank),
        "ROLE_WORLD_SIZE": str(place.world_size),
        "MASTER_ADDR": master[0],
        "MASTER_PORT": master[1],
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_MAX_RESTARTS": "0",
        # The store is rank 0's own: no agent keeps one.
        "TORCHELASTIC_USE_AGENT_STORE": "False",
    }
