"""Lack of memory is known by its type or its words, wherever it stands in the chain of causes."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed

from nnunetv2_crossmatch.errors import InputError, Problem
from nnunetv2_crossmatch.learning.memory import causes, is_out_of_memory, lack_of_memory_told

TEXTS = [
    "GET was unable to find an engine to execute this computation",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "No valid triton configs. OutOfMemoryError: out of resource: shared memory",
    "MPS backend out of memory (MPS allocated: 8.00 GB, other allocations: 1.00 GB, max allowed: 9.07 GB)",
]


def raised(error: Exception, cause: Exception | None = None, context: Exception | None = None) -> Exception:
    """``error`` raised from ``cause``, or while ``context`` was handled."""
    try:
        try:
            if context is not None:
                raise context
        except Exception:
            raise error from cause
        raise error from cause
    except Exception as caught:
        return caught


def failed_compiler(inner: Exception) -> BackendCompilerFailed:
    """PyTorch 2.7 added the frame."""
    frame = [None] if "first_useful_frame" in inspect.signature(BackendCompilerFailed).parameters else []
    return BackendCompilerFailed("inductor", inner, *frame)


ACCELERATOR_ERRORS = (
    [torch.AcceleratorError("CUDA error: out of memory", 2)] if hasattr(torch, "AcceleratorError") else []
)
"""PyTorch 2.8 and newer."""


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        *ACCELERATOR_ERRORS,
        *map(RuntimeError, TEXTS),
        failed_compiler(RuntimeError(TEXTS[3])),
        raised(RuntimeError("backward failed"), cause=torch.OutOfMemoryError("x")),
        raised(KeyError("x"), context=RuntimeError(TEXTS[1])),
    ],
    ids=lambda error: f"{type(error).__name__}: {str(error)[:30]}",
)
def test_lack_of_memory_is_known(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("shape mismatch"), raised(ValueError("x"), cause=KeyError("engine"))])
def test_other_errors_are_no_lack_of_memory(error):
    assert not is_out_of_memory(error)


def test_a_chain_of_causes_that_leads_back_ends():
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert list(causes(first)) == [first, second]


def test_a_run_that_ends_for_lack_of_memory_is_told_the_remedy():
    with pytest.raises(InputError) as told, lack_of_memory_told("fold_0"):
        raise RuntimeError(f"{TEXTS[1]}\nException raised from ...")
    line = str(told.value)
    assert "\n" not in line
    assert all(word in line for word in ("fold_0", "execsequential", "recompute1", "ubatch<n>", "--c"))


def test_other_errors_pass_unchanged():
    with pytest.raises(KeyError), lack_of_memory_told("fold_0"):
        raise KeyError("x")
    with pytest.raises(InputError, match="disk full"), lack_of_memory_told("fold_0"):
        raise InputError(Problem("disk full", "", "", ""))
