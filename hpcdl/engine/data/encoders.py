"""From text to token ids."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hpcdl.errors import EngineError

Tokens = npt.NDArray[Any]

_PIECE = 1 << 20  # bytes of text that the tokenizers library is given at once, and the rest of the last line


class Encoder(Protocol):
    """What makes tokens of text."""

    dtype: np.dtype[Any]
    between: int | None
    """The token between two texts where the source names none."""

    def encode(self, content: bytes) -> Iterator[Tokens]:
        """Token ids of ``content``, of the encoder's dtype, in pieces."""


class Bytes:
    """A token a byte."""

    dtype: np.dtype[Any] = np.dtype(np.uint8)
    between: int | None = 0  # does not occur in text

    def encode(self, content: bytes) -> Iterator[Tokens]:
        """The bytes as they are."""
        yield np.frombuffer(content, dtype=np.uint8)


class HuggingFace:
    """A ``tokenizer.json`` through the tokenizers library; special tokens are not added.

    Raises:
        EngineError: the library is missing, the file is no tokenizer, or it has more tokens than the model.
    """

    between: int | None = None

    def __init__(self, path: Path, vocab: int) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise EngineError(
                f"data.tokenizer {path} needs the tokenizers library, which is not installed",
                "install it with: pip install 'hpcdl[tokenizers]'",
            ) from None
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # noqa: BLE001 - the library raises bare Exception
            raise EngineError(
                f"data.tokenizer {path} cannot be used: {error}",
                "give the tokenizer.json that the Hugging Face tokenizers library writes",
            ) from None
        self._check(path, vocab)
        self._tokenizer.no_truncation()  # both are said for single texts, not for a corpus
        self._tokenizer.no_padding()
        self.dtype: np.dtype[Any] = np.dtype(np.uint16 if vocab <= 2**16 else np.uint32)

    def _check(self, path: Path, vocab: int) -> None:
        largest = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
        if largest >= vocab:
            raise EngineError(
                f"data.tokenizer {path} has token ids up to {largest}, but model.vocab is {vocab}",
                f"set model.vocab to {largest + 1} or more",
            )

    def encode(self, content: bytes) -> Iterator[Tokens]:
        """Ids of the text, some whole lines at a time; what is not UTF-8 becomes the replacement character.

        The library needs a hundred times the memory of what it is given at once, and but for batches it holds
        the interpreter meanwhile.
        """
        lines = BytesIO(content)
        while piece := b"".join(lines.readlines(_PIECE)):
            texts = [piece.decode(errors="replace")]
            (encoded,) = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            yield np.array(encoded.ids, dtype=self.dtype)


def encoder(tokenizer: str, vocab: int) -> Encoder:
    """The encoder that ``data.tokenizer`` names, for a model of ``vocab`` tokens."""
    return Bytes() if tokenizer == "bytes" else HuggingFace(Path(tokenizer), vocab)
