"""Run a network that was compiled ahead of time into a shared library.

AOTInductor's libraries have a C interface that torch keeps stable. It is called through ctypes, which
lets go of the GIL, because torch's own Python runner keeps it for the whole forward: then no picture
would be decoded and no message answered meanwhile.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

Handle = ctypes.c_void_p
UINT8, CPU, STRIDED = 0, 0, 0  # torch's own numbers, checked in _torch()


class CompiledError(RuntimeError):
    """A compiled library could not be loaded or run."""


class CompiledCpu:
    """A library for the CPU: (n, crop, crop, 3) uint8 in, (n, dim) float32 out. One thread runs it."""

    def __init__(self, library: Path) -> None:
        """Load `library`, a .so written by `compiling`. Raises CompiledError."""
        try:
            self._library = ctypes.CDLL(str(library))
        except OSError as error:
            raise CompiledError(f"cannot load {library.name}: {error}") from error
        self._container = Handle()
        create = self._library.AOTInductorModelContainerCreateWithDevice
        create.argtypes = [ctypes.POINTER(Handle), ctypes.c_size_t, ctypes.c_char_p, ctypes.c_char_p]
        self._check(create(ctypes.byref(self._container), 1, b"cpu", None), "create")
        self._run = self._library.AOTInductorModelContainerRun
        handles = ctypes.POINTER(Handle)
        self._run.argtypes = [Handle, handles, ctypes.c_size_t, handles, ctypes.c_size_t, Handle, Handle]

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return the features of `pixels`. Raises CompiledError."""
        given, out = Handle(_borrow(pixels)), Handle()
        # The library takes `given` over and frees it.
        status = self._run(self._container, ctypes.byref(given), 1, ctypes.byref(out), 1, None, None)
        self._check(status, "run")
        try:
            return _copied(out)
        finally:
            _torch().aoti_torch_delete_tensor_object(out)

    def close(self) -> None:
        """Free the weights. The library itself stays mapped: unloading OpenMP code is not safe."""
        delete = self._library.AOTInductorModelContainerDelete
        delete.argtypes = [Handle]
        self._check(delete(self._container), "delete")

    def _check(self, status: int, step: str) -> None:
        if status:
            raise CompiledError(f"the compiled network failed to {step} (status {status}); torch wrote why to stderr")


def _borrow(pixels: Tensor) -> int:
    """Return a handle of a tensor over the memory of `pixels`, which must be contiguous uint8 on the CPU."""
    if pixels.dtype != torch.uint8 or not pixels.is_contiguous() or pixels.device.type != "cpu":
        raise CompiledError("pixels must be contiguous uint8 on the CPU")
    axes = pixels.ndim
    sizes = (ctypes.c_int64 * axes)(*pixels.shape)
    strides = (ctypes.c_int64 * axes)(*pixels.stride())
    handle = Handle()
    status = _torch().aoti_torch_create_tensor_from_blob(
        Handle(pixels.data_ptr()), axes, sizes, strides, ctypes.c_int64(0), UINT8, CPU, 0, ctypes.byref(handle)
    )
    if status or handle.value is None:
        raise CompiledError("torch made no tensor of the pixels")
    return handle.value


def _copied(handle: Handle) -> Tensor:
    """Copy a contiguous (n, dim) float32 tensor out of torch's memory."""
    library = _torch()
    sizes, data = ctypes.POINTER(ctypes.c_int64)(), Handle()
    failed = library.aoti_torch_get_sizes(handle, ctypes.byref(sizes))
    if failed or library.aoti_torch_get_data_ptr(handle, ctypes.byref(data)):
        raise CompiledError("torch cannot read the features")
    rows, columns = sizes[0], sizes[1]
    values = (ctypes.c_float * (rows * columns)).from_address(data.value or 0)
    return torch.from_numpy(np.frombuffer(values, np.float32).reshape(rows, columns).copy())


@cache
def _torch() -> ctypes.CDLL:
    """Return torch's library, in which the C interface for tensors is."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    found = (
        library.aoti_torch_dtype_uint8(),
        library.aoti_torch_device_type_cpu(),
        library.aoti_torch_layout_strided(),
    )
    if found != (UINT8, CPU, STRIDED):
        raise CompiledError(f"this torch numbers its types otherwise: {found}")
    for name in ("aoti_torch_get_sizes", "aoti_torch_get_data_ptr"):
        getattr(library, name).argtypes = [Handle, ctypes.c_void_p]
    library.aoti_torch_delete_tensor_object.argtypes = [Handle]
    return library
