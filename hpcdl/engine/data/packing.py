"""Whole documents put into windows where they fit best. Pure.

Best-fit decreasing, as in Ding et al., "Fewer Truncations Improve Language Modeling"
(arXiv 2404.10830): the longest piece first, each into the fullest window that still has room.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Packing:
    """Which pieces of documents stand in which window. Letters: P pieces, W windows."""

    pieces_P3: Integers
    """Of each piece its first token, its tokens, and how many of them have a target; by window."""
    first_W: Integers
    """The first piece of each window, and one more entry: P."""
    counted_W: Integers
    """Targets of each window."""


def pack(ends: Integers, window: int) -> Packing:
    """Documents in windows of ``window`` tokens.

    A document longer than a window is cut into windows and a rest. The target of a token is the
    next one of its document, so a document's last token has none, and a document of one token is
    left out. Windows are numbered by their longest piece in the order of the documents.

    Args:
        ends: the place after the last token of each document; the first starts at 0.
        window: tokens of one.
    """
    pieces_P3 = _pieces(ends, window)
    windows_P = _numbered(best_fit(pieces_P3[:, 1], window))
    by_window = np.argsort(windows_P, kind="stable")
    counts_W = np.bincount(windows_P)
    first_W = np.concatenate([[0], np.cumsum(counts_W)]).astype(np.int64)
    pieces_P3 = pieces_P3[by_window]
    counted_W = np.add.reduceat(pieces_P3[:, 2], first_W[:-1]) if len(counts_W) else first_W[:0]
    return Packing(pieces_P3, first_W, counted_W)


def _pieces(ends: Integers, window: int) -> Integers:
    starts = np.concatenate([[0], ends])[:-1].astype(np.int64)
    targets = ends - starts - 1
    cuts = -(-targets // window)
    within = np.arange(cuts.sum()) - np.repeat(np.cumsum(cuts) - cuts, cuts)
    left = np.repeat(targets, cuts) - within * window
    first = np.repeat(starts, cuts) + within * window
    return np.stack([first, np.minimum(left + 1, window), np.minimum(left, window)], axis=1)


def best_fit(lengths: Integers, window: int) -> tuple[Integers, list[int]]:
    """The window of each piece, and the piece that opened each window.

    Windows with the same room are kept together, and one bit of ``rooms`` says whether there are
    any, so the smallest room that suffices is the lowest bit at or above the length.
    """
    opened: list[int] = []
    windows = np.empty(len(lengths), dtype=np.int64)
    with_room: list[list[int]] = [[] for _ in range(window + 1)]
    rooms = 0
    for piece in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[piece])
        enough = rooms >> length
        if enough:
            room = length + (enough & -enough).bit_length() - 1
            chosen = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            room, chosen = window, len(opened)
            opened.append(piece)
        windows[piece] = chosen
        with_room[room - length].append(chosen)
        if room > length:  # a full window is never asked for
            rooms |= 1 << (room - length)
    return windows, opened


def _numbered(packed: tuple[Integers, list[int]]) -> Integers:
    """Windows in the order of the pieces that opened them: the last windows are no special ones."""
    windows, opened = packed
    numbers = np.empty(len(opened), dtype=np.int64)
    numbers[np.argsort(np.array(opened, dtype=np.int64))] = np.arange(len(opened))
    return numbers[windows]
