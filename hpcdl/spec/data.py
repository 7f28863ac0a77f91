"""What a model is trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from hpcdl.spec.frozen import Frozen

LONGEST_PERIOD = 1_000_000
"""Sequences after which a mixture of sources repeats, at most; the ranks keep a table of that length."""


class Source(Frozen):
    """One body of text or of tokens."""

    source: Literal["text", "stdlib", "tokens", "model"] = Field(
        "text",
        description="text: the files below path; stdlib: the Python standard library's own source files; "
        "tokens: .npy and .bin files below path that hold token ids; model: what model.entry returns",
    )
    path: str | None = Field(
        None, min_length=1, description="a file or a folder; relative to the experiment file"
    )
    pattern: str = Field("*", description="which files of a folder, as a glob applied at every depth")
    max_bytes: int = Field(256 * 1024**2, gt=0, description="at most this much text is read")
    dtype: Literal["uint16", "uint32"] | None = Field(None, description="of the ids in .bin files")
    document_end: int | None = Field(
        None,
        ge=0,
        description="the token that ends a document: put between texts, looked for in tokens; "
        "without it texts of the bytes tokenizer have a 0 between them",
    )
    weight: float = Field(1.0, gt=0, description="its share of the sequences, relative to the other sources")

    @model_validator(mode="after")
    def _path_where_needed(self) -> Self:
        if self.source in ("text", "tokens") and not self.path and not self._elsewhere:
            raise ValueError(f"source {self.source} needs a path: the file or folder to train on")
        if self.source in ("stdlib", "model") and self.path:
            raise ValueError(
                f"source {self.source} takes no path, but path is {self.path!r}; "
                "use source: text to read a path"
            )
        return self

    @property
    def _elsewhere(self) -> bool:
        """Whether other keys say what is read."""
        return False

    def anchored(self, folder: Path) -> Self:
        """The same with its path absolute; relative paths are relative to ``folder``."""
        if self.path is None:
            return self
        return self.model_copy(update={"path": _anchored(self.path, folder)})


class Data(Source):
    """What is trained on: one source, or several in ``sources``, and how it becomes sequences."""

    sources: tuple[Source, ...] = Field((), description="several sources, each with its weight")
    tokenizer: str = Field(
        "bytes", min_length=1, description="bytes, or the path of a Hugging Face tokenizer.json"
    )
    packing: Literal["chain", "fit"] = Field(
        "chain",
        description="chain: documents one after the other, cut into sequences; "
        "fit: whole documents put where they fit best, the rest of a sequence is padding",
    )
    validation: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of each source that is held out for evaluation: its last sequences",
    )
    prefetch: int = Field(2, gt=0, description="steps whose batches are made in advance")

    @property
    def _elsewhere(self) -> bool:
        return bool(self.sources)

    @property
    def all_sources(self) -> tuple[Source, ...]:
        """What is read, one source or several."""
        return self.sources or (Source(**{key: getattr(self, key) for key in Source.model_fields}),)

    @property
    def reads_text(self) -> bool:
        """Whether anything has to be tokenised."""
        return any(source.source in ("text", "stdlib") for source in self.all_sources)

    @property
    def quotas(self) -> tuple[int, ...]:
        """Sequences that each source gives to one period of the mixture: its weights in lowest terms."""
        return quotas([source.weight for source in self.all_sources])

    @property
    def paths(self) -> dict[str, str]:
        """Every path that is read, by its key."""
        keyed = {f"data.sources.{place}.path": source.path for place, source in enumerate(self.sources)}
        if not self.sources:
            keyed = {"data.path": self.path}
        if self.tokenizer != "bytes":
            keyed["data.tokenizer"] = self.tokenizer
        return {key: path for key, path in keyed.items() if path is not None}

    def anchored(self, folder: Path) -> Self:
        """The same with all its paths absolute; relative paths are relative to ``folder``."""
        update: dict[str, Any] = {"sources": tuple(source.anchored(folder) for source in self.sources)}
        if self.tokenizer != "bytes":
            update["tokenizer"] = _anchored(self.tokenizer, folder)
        return super().anchored(folder).model_copy(update=update)

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> Self:
        fields = Source.model_fields.items()
        stray = [key for key, field in fields if getattr(self, key) != field.default]
        if self.sources and stray:
            raise ValueError(f"{stray[0]} stands beside sources; say it of one of the sources instead")
        if any(source.source == "model" for source in self.sources):
            raise ValueError("source model cannot be one of several sources")
        return self

    @model_validator(mode="after")
    def _ids_are_bytes(self) -> Self:
        for source in self.all_sources:
            end = source.document_end or 0
            if self.tokenizer == "bytes" and source.source != "tokens" and end > 255:
                raise ValueError(f"document_end {end} is no byte, but the tokenizer is bytes")
        return self

    @model_validator(mode="after")
    def _mixture_repeats(self) -> Self:
        if sum(self.quotas) > LONGEST_PERIOD:
            ratio = ":".join(map(str, self.quotas))
            raise ValueError(
                f"the weights of the sources are in the ratio {ratio}, whose sum is above {LONGEST_PERIOD}; "
                "round them, for example to 3 digits"
            )
        return self


def quotas(weights: Sequence[float]) -> tuple[int, ...]:
    """The smallest whole numbers in the ratio of ``weights``, each taken as the decimal it prints as."""
    exact = [Fraction(str(weight)) for weight in weights]
    scale = math.lcm(*(each.denominator for each in exact))
    whole = [int(each * scale) for each in exact]
    divisor = math.gcd(*whole)
    return tuple(each // divisor for each in whole)


def _anchored(path: str, folder: Path) -> str:
    return str((folder / Path(path).expanduser()).absolute())


OWN_DATA = Data(source="model")
"""Where the model is the user's own, which brings its data."""
