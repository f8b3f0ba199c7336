"""Notices what would make the host wait for a GPU, on the CPU: operations and methods that read a value back.

And tensors that the package makes on the device that is the default, where a GPU's are expected. Limit: what
dispatches to torch, and the methods of tensors that Python code calls; nothing inside compiled kernels.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import nnunetv2_crossmatch

OPERATIONS = {
    "aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::equal", "aten::allclose", "aten::nonzero",
    "aten::masked_select", "aten::unique_dim", "aten::_unique2", "aten::bincount", "aten::repeat_interleave",
}  # fmt: skip
FACTORIES = (torch.arange, torch.empty, torch.eye, torch.full, torch.linspace, torch.ones, torch.rand, torch.randint,
             torch.randn, torch.randperm, torch.tensor, torch.zeros)  # fmt: skip
METHODS = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__", "__array__")


class _Operations(TorchDispatchMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        by_mask = name in ("aten::index", "aten::index_put", "aten::index_put_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if name in OPERATIONS or by_mask:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


class _Factories(TorchFunctionMode):
    """Adds each call in ``package`` that makes a tensor and names no device."""

    def __init__(self, found: list[str], package: str) -> None:
        super().__init__()
        self.found, self.package = found, package

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in FACTORIES and (kwargs or {}).get("device") is None:
            caller = sys._getframe(1)
            if caller.f_code.co_filename.startswith(self.package):
                self.found.append(f"{Path(caller.f_code.co_filename).name}:{caller.f_lineno} {func.__name__}")
        return func(*args, **(kwargs or {}))


@contextmanager
def made_without_device(package: str = str(Path(nnunetv2_crossmatch.__file__).parent)) -> Iterator[list[str]]:
    """A list that is filled with the places in ``package`` that make a tensor and name no device."""
    found: list[str] = []
    with _Factories(found, package):
        yield found


@contextmanager
def noticed_waits() -> Iterator[list[str]]:
    """A list that is filled with the names of what reads a value back inside the block."""
    found: list[str] = []

    def noticing(name: str) -> Any:
        own = getattr(torch.Tensor, name)

        def method(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            found.append(f"Tensor.{name}")
            return own(self, *args, **kwargs)

        return method

    patches = [patch.object(torch.Tensor, name, noticing(name)) for name in METHODS]
    for each in patches:
        each.start()
    try:
        with _Operations(found):
            yield found
    finally:
        for each in patches:
            each.stop()
