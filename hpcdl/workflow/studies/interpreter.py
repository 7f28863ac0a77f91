"""Which torch the ranks' interpreter has, read from its files: nothing of torch is imported or run here."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path

# torch/version.py, as torch's build writes it. Builds for ROCm say their HIP version, which counts like
# ROCm's up to the second part; newer ones say ROCm's own after it, which replaces it.
_NAMES = {"__version__": "torch", "cuda": "cuda", "hip": "rocm", "rocm": "rocm"}


def torch_versions(python: str) -> dict[str, str]:
    """Versions of torch and of the CUDA or ROCm it was built for; what cannot be found out is not there.

    Args:
        python: the interpreter of the ranks. One that is looked up on the compute node's PATH, or in a
            container, is not known here.
    """
    file = _version_file(python)
    try:
        return _read(file.read_text(encoding="utf-8")) if file else {}
    except (OSError, ValueError, SyntaxError):
        return {}


def _version_file(python: str) -> Path | None:
    if python == sys.executable:
        found = importlib.util.find_spec("torch")
        return Path(found.origin).parent / "version.py" if found and found.origin else None
    interpreter = Path(python)
    if not interpreter.is_absolute():
        return None
    # Not resolved: the interpreter of a virtual environment is a link out of it.
    return next(interpreter.parent.parent.glob("lib*/python3*/site-packages/torch/version.py"), None)


def _read(text: str) -> dict[str, str]:
    assigned = (entry for node in ast.parse(text).body for entry in _assignments(node))
    return {_NAMES[name]: value for name, value in assigned if name in _NAMES}


def _assignments(node: ast.stmt) -> Iterable[tuple[str, str]]:
    """Names that a statement gives a plain text."""
    if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Constant):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if isinstance(node.value.value, str):
            yield from ((target.id, node.value.value) for target in targets if isinstance(target, ast.Name))
