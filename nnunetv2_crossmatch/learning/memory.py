"""Lack of GPU memory: what it looks like, whether a step fits, and what to tell when nothing else can be done.

Limit: knows steps as functions; which execution follows is the method's.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from nnunetv2_crossmatch.errors import InputError, Problem

LACK_OF_MEMORY = (
    "out of memory",  # CUDA's and MPS's own words, also in torch.AcceleratorError and a plain RuntimeError
    "outofmemoryerror",  # Triton's, inside the compiler's error
    "cudnn_status_alloc_failed",
    "cublas_status_alloc_failed",
    "unable to find an engine",  # cuDNN found none whose workspace fits
)
REMEDY = (
    "train with the token execsequential; if that is not enough, also recompute1, a smaller ubatch<n> or batch<n>; the "
    "checkpoints are whole, so that --c goes on where more memory is free"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error``, or one that led to it, says that the device's memory did not suffice."""
    return any(
        isinstance(each, torch.OutOfMemoryError) or any(words in str(each).lower() for words in LACK_OF_MEMORY)
        for each in causes(error)
    )


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """``error`` and those that it was raised from, or while handling."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        each = waiting.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            yield each
            waiting += [each.__cause__, each.__context__]


def fits_in_memory(
    step: Callable[[], object], network: torch.nn.Module, stateless: Iterable[torch.Tensor] | None = None
) -> bool:
    """Whether ``step`` (forward and backward) runs without exhausting the GPU's memory; frees what it held.

    Args:
        step: leaves gradients in ``network``.
        network: its gradients are removed.
        stateless: parameters whose optimizer has no state yet (default: all); at most two values for each (AdamW) are
            held in reserve meanwhile, which the first real step will add.
    """
    parameters = list(network.parameters() if stateless is None else stateless)
    try:
        reserve = [torch.empty_like(p) for p in parameters for _ in range(2)]
        step()
        del reserve
        return True
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        free_memory(network)


def free_memory(network: torch.nn.Module) -> None:
    """Remove the gradients of ``network`` and what an interrupted step left."""
    network.zero_grad()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def lack_of_memory_told(where: Path | str) -> Iterator[None]:
    """Lack of memory inside the block becomes one line with the remedy.

    Raises:
        InputError: the memory of the device did not suffice.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        detail = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(Problem("out of GPU memory", where, detail, REMEDY)) from error
