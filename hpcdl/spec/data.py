"""What a model is trained on."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from hpcdl.spec.frozen import Frozen


class Data(Frozen):
    """What is trained on."""

    source: Literal["text", "stdlib"] = Field(
        "text",
        description="text: the files below path; stdlib: the Python standard library's own source files",
    )
    path: str | None = Field(None, description="a file or a folder; relative to the experiment file")
    pattern: str = Field("*", description="which files of a folder, as a glob applied at every depth")
    tokenizer: Literal["bytes"] = "bytes"
    max_bytes: int = Field(256 * 1024**2, gt=0, description="at most this much text is read")

    @model_validator(mode="after")
    def _path_where_needed(self) -> Data:
        if self.source == "text" and not self.path:
            raise ValueError("source text needs a path: the file or folder to train on")
        if self.source == "stdlib" and self.path:
            raise ValueError(
                f"source stdlib takes no path, but path is {self.path!r}; use source: text to read a path"
            )
        return self
