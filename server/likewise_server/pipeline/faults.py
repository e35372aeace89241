"""What kind of failure a forward met: the images', the memory's, or one after which the device is of no more use."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch

Fault: TypeAlias = Literal["image", "memory", "device"]

# What CUDA reports again and again once it has happened: only a new process can use the device. The numbers are those
# of cudaError_t, the texts what cudaGetErrorString says of them (CUDA Runtime API, "Error handling").
LASTING = {
    214: "uncorrectable ECC error encountered",
    220: "uncorrectable NVLink error detected during the execution",
    700: "an illegal memory access was encountered",
    702: "the launch timed out and was terminated",
    709: "context is destroyed",
    710: "device-side assert triggered",
    714: "hardware stack error",
    715: "an illegal instruction was encountered",
    716: "misaligned address",
    717: "operation not supported on global/shared address space",
    718: "invalid program counter",
    719: "unspecified launch failure",
    999: "unknown error",
}
NO_MEMORY = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "STATUS_ALLOC_FAILED",  # of cuBLAS, cuDNN and their kin
)


def fault_of(error: Exception) -> Fault:
    """Return whose fault a failed forward was; "device" where no later one can succeed in this process."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return "memory"
    text = str(error)
    if isinstance(error, RuntimeError) and any(words in text for words in NO_MEMORY):
        return "memory"
    of_cuda = isinstance(error, torch.AcceleratorError) or (isinstance(error, RuntimeError) and "CUDA error" in text)
    if of_cuda and (getattr(error, "error_code", None) in LASTING or any(words in text for words in LASTING.values())):
        return "device"
    return "image"
