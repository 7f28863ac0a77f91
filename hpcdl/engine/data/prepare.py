"""What one rank does for all before training: text to tokens, documents to windows, files to a table.

It writes one folder, named by a number that stands for files, tokenizer and settings, and gives
the number to the others, who open that folder without looking for the sources. What the run begins
with it keeps to: the order of the data is a function of the step only as long as they are the same.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import asdict, dataclass
from pathlib import Path

from hpcdl.engine.data.documents import find_documents, tokenise
from hpcdl.engine.data.encoders import encoder
from hpcdl.engine.data.files import SHARED, files_of
from hpcdl.engine.data.packing import pack
from hpcdl.engine.data.shards import Row, Shard, open_shard
from hpcdl.engine.data.windows import Chain, Fit, Windows, open_packing, save_packing
from hpcdl.engine.log import say
from hpcdl.errors import EngineError
from hpcdl.spec.data import Data
from hpcdl.spec.model import Model
from hpcdl.telemetry import write_whole

_TABLE = "sources.json"
_BEGUN = "begun-with"  # the name of the folder that the run began with
_UNFINISHED = -1


@dataclass(frozen=True)
class Prepared:
    """The prepared data of one run.

    Args:
        folder: holds one folder for each state that the sources were in.
        data: what to read.
        model: its sequence length and vocabulary.
    """

    folder: Path
    data: Data
    model: Model

    def make(self) -> int:
        """Prepare what is not there yet; the number to open it with.

        What the run began with is taken again, and its sources need not be there any more.

        Raises:
            EngineError: a source or the tokenizer cannot be used, or token files are not what they were.
        """
        begun = self._begun()
        if begun is not None and self._place(begun).exists():
            self._check_in_place(begun)
            return begun
        files = [files_of(source) for source in self.data.all_sources]
        number = self._number([path for paths in files for path in paths])
        if begun is not None and begun != number:
            say(f"warning: {self._place(begun)} is gone; the data are prepared anew, as the sources are now")
        if not self._place(number).exists():
            self._write(files, self._place(number))
        return number

    def begin(self, number: int) -> None:
        """Have all later attempts take what ``number`` stands for, whatever becomes of the sources."""
        if self._begun() != number:
            write_whole(self.folder / _BEGUN, f"{self._place(number).name}\n")

    def open(self, number: int) -> list[Windows]:
        """The sequences of each source; every rank may call it, with the number from ``make``.

        Raises:
            EngineError: the folder cannot be read.
        """
        place = self._place(number)
        return [self._windows(shards, place / str(index)) for index, shards in enumerate(_table(place))]

    def _windows(self, shards: list[Shard], stem: Path) -> Windows:
        row = Row(shards, self.model.vocab)
        if self.data.packing == "chain":
            return Chain(row, self.model.sequence)
        return Fit(row, self.model.sequence, open_packing(stem))

    def _place(self, number: int) -> Path:
        return self.folder / f"{number:07x}"

    def _begun(self) -> int | None:
        try:
            return int((self.folder / _BEGUN).read_text(encoding="utf-8"), 16)
        except (FileNotFoundError, ValueError):  # a host that crashed may have left it empty
            return None

    def _check_in_place(self, number: int) -> None:
        """Refuse token files, which are read where they are, that are no more as they were."""
        for source, shards in zip(self.data.all_sources, _table(self._place(number)), strict=True):
            for shard in shards if source.source == "tokens" else ():
                if _found(shard, source.dtype) != shard:
                    raise EngineError(
                        f"the data are not those the run began with: {shard.path}, which had {shard.length} "
                        "tokens, is gone or another",
                        "bring the file back as it was; to train on other data, submit a new run",
                    )

    def _number(self, files: list[Path]) -> int:
        """28 bits, which fit the integer that ranks exchange."""
        if self.data.tokenizer != "bytes":
            files = [*files, Path(self.data.tokenizer)]
        told = [
            self.data.model_dump(exclude={"prefetch", "validation"}),
            self.model.sequence,
            self.model.vocab,
            [(str(path), *_stamp(path)) for path in files],
        ]
        return int(hashlib.sha256(json.dumps(told).encode()).hexdigest()[:7], 16)

    def _write(self, files: list[list[Path]], place: Path) -> None:
        unfinished = self.folder / "unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)  # of an attempt that ended here
        unfinished.mkdir(parents=True)
        table = [self._prepare(index, paths, unfinished) for index, paths in enumerate(files)]
        text = json.dumps([[asdict(shard) for shard in shards] for shards in table])
        (unfinished / _TABLE).write_text(text, encoding="utf-8")
        unfinished.rename(place)

    def _prepare(self, index: int, files: list[Path], folder: Path) -> Sequence[Shard]:
        """What one source is read from; paths in ``folder`` are relative to it."""
        source, fit = self.data.all_sources[index], self.data.packing == "fit"
        if source.source == "tokens":
            shards = [open_shard(path, source.dtype) for path in files]
            documents = find_documents(shards, source.document_end if fit else None)
        else:
            encode = encoder(self.data.tokenizer, self.model.vocab)
            documents = tokenise(source, files, encode, folder / f"{index}.tokens")
        if fit:
            save_packing(pack(documents.ends, self.model.sequence), folder / str(index))
        return documents.shards


def _table(place: Path) -> list[list[Shard]]:
    """Where the tokens of each source stand."""
    try:
        table = json.loads((place / _TABLE).read_text(encoding="utf-8"))
    except OSError as error:
        raise EngineError(
            f"cannot read {place / _TABLE}: {error.strerror or error}",
            "rank 0 wrote it before: check that the run folder is shared by all nodes",
        ) from None
    return [[Shard(**shard | {"path": str(place / shard["path"])}) for shard in shards] for shards in table]


def _found(shard: Shard, dtype: str | None) -> Shard | None:
    """What its file is now, by its header and its size; None if it is no readable token file."""
    try:
        return open_shard(Path(shard.path), dtype)
    except (EngineError, OSError):
        return None


def agreed(making: Future[int], of_rank_0: Callable[[int], int], every_s: float = 5.0) -> int:
    """The number that rank 0 makes, on every rank; all of them call this.

    Rank 0 tells again and again how it stands, so no operation lasts longer than a transport allows,
    however long the text is.

    Args:
        making: finished or under way; only that of rank 0 counts.
        of_rank_0: called by every rank; returns the number that rank 0 called it with.
        every_s: how often rank 0 tells.
    """
    while True:
        finished, _ = wait([making], timeout=every_s)
        number = of_rank_0(making.result() if finished else _UNFINISHED)
        if number != _UNFINISHED:
            return number


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise EngineError(f"cannot read {path}: {error.strerror or error}", SHARED) from None
    return status.st_size, status.st_mtime_ns
