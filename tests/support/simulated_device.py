"""A device without hardware: tensors on ``sim:0`` have CPU memory, and every operation that mixes devices is refused.

`install` registers it as torch's accelerator for the rest of the process, so it is for programs of their own (autograd
learns of devices only before its first backward pass). Its tensors are plain ``torch.Tensor`` objects with the dispatch
key ``PrivateUse1``: each operation runs on CPU tensors over the same memory, with the CPU's values. What a real device
would make the host wait for (``item()``, shapes that depend on values, copies to the host) is recorded with the place
in the code that asked for it.
"""

import ctypes
import functools
import sys
import threading
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

NAME = "sim"
DEVICE = "sim:0"
MEMORY = 1 << 30  # that the device says is free, in bytes
REASON = "this torch has no backends in Python (torch.utils.backend_registration), with which a device is simulated"

_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
_EXTENSION = 12  # kDLExtDev, the device type of DLPack that torch reads as PrivateUse1
_TORCH = str(Path(torch.__file__).parent)
_aten = torch.ops.aten


def is_supported() -> bool:
    """Tell whether this torch has the private functions that a simulated device needs."""
    from torch.utils import backend_registration

    return all(
        hasattr(place, name)
        for place, name in (
            (backend_registration, "_setup_privateuseone_for_python_backend"),
            (backend_registration, "_DummyBackendModule"),
            (torch.library.Library, "fallback"),
            (torch._C, "_acc"),
        )
    )


class Device:
    """What the device was asked for since the last `reset`, and when it fails.

    A place is the file and the function that asked: ``"scoring/skipped_rows.py:check_finite"``.

    Attributes:
        waits: How often the host waited for the device, by place.
        transfers: Copies to the host and to the device, by direction, place and name of the thread.
        has_room: Tells whether an allocation of this many bytes at a place succeeds; None: all do.
        before_wait: Is told the place before the host waits; an error that it raises is one of an earlier kernel.
    """

    def __init__(self) -> None:
        self.libraries = []
        self.reset()

    def reset(self) -> None:
        """Count from zero, and let nothing fail."""
        self.waits: Counter[str] = Counter()
        self.transfers: Counter[tuple[str, str, str]] = Counter()
        self.has_room = None
        self.before_wait = lambda _place: None

    def wait(self) -> None:
        """Let the host wait for the device."""
        place = _place()
        self.before_wait(place)
        self.waits[place] += 1

    def transfer(self, direction: str) -> None:
        """Count a copy to the host, for which it waits, or to the device."""
        self.transfers[direction, _place(), threading.current_thread().name] += 1
        if direction == "to host":
            self.wait()

    def allocate(self, tensor: Tensor) -> Tensor:
        """A tensor of the device in the memory of a CPU tensor."""
        if self.has_room is not None and not self.has_room(tensor.nbytes, _place()):
            raise torch.OutOfMemoryError(f"{NAME} out of memory. Tried to allocate {tensor.nbytes} bytes")
        capsule = torch._C._to_dlpack(tensor)
        _device_type(capsule).value = _EXTENSION
        placed = torch._C._from_dlpack(capsule)
        same = placed.stride() == tensor.stride()  # DLPack does not keep strides of axes of one element
        return placed if same else _aten.as_strided.default.redispatch(_CPU, placed, tensor.shape, tensor.stride(), 0)


DEVICE_STATE = Device()


def _device_type(capsule: object) -> ctypes.c_int32:
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return ctypes.c_int32.from_address(pointer(capsule, b"dltensor") + ctypes.sizeof(ctypes.c_void_p))


def is_on_device(value: object) -> bool:
    """Tell whether a value is a tensor of the device."""
    return isinstance(value, Tensor) and value.device.type == NAME


def _on_cpu(value: Tensor) -> Tensor:
    """A CPU tensor over the memory of a device's tensor; one of the CPU as it is."""
    if not is_on_device(value):
        return value
    storage = value.untyped_storage()
    count = storage.nbytes() // value.itemsize
    if not count:
        return torch.empty(value.shape, dtype=value.dtype)
    memory = (ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr())
    flat = torch.frombuffer(memory, dtype=value.dtype, count=count)
    return flat.as_strided(value.shape, value.stride(), value.storage_offset())


def _back(result: object, inputs: list[Tensor]) -> object:
    """A result on the device: a view where it shares the memory of an input."""
    if not isinstance(result, Tensor):
        return result
    address = result.untyped_storage().data_ptr()
    for value in inputs if address else ():
        if value.untyped_storage().data_ptr() == address and value.dtype == result.dtype:
            place = (result.shape, result.stride(), result.storage_offset())
            return _aten.as_strided.default.redispatch(_CPU, value, *place)
    return DEVICE_STATE.allocate(result)


def _kernel(op: torch._ops.OpOverload, *args: object, **kwargs: object) -> object:
    """Run an operation of the device."""
    if op is _aten._copy_from.default:
        return _copy(*args[:2])
    if op is _aten._fused_sdp_choice.default:
        return 0  # attention in single steps, as on a device without a fused kernel
    if op is _aten.set_.source_Storage_storage_offset:
        return op.redispatch(_CPU, *args)  # changes what a tensor refers to, and nothing in memory
    op, args = _cpu_operation(op, args)
    on_cpu: dict[int, tuple[Tensor, Tensor]] = {}

    def placed(value: object) -> object:
        if isinstance(value, Tensor):
            return on_cpu.setdefault(id(value), (value, _on_cpu(value)))[1]
        return torch.device("cpu") if isinstance(value, torch.device) and value.type == NAME else value

    cpu_args, cpu_kwargs = _mapped(placed, args), {name: _mapped(placed, value) for name, value in kwargs.items()}
    inputs = [value for value, _ in on_cpu.values()]
    _record(op, args, inputs)
    result = op(*cpu_args, **cpu_kwargs)
    written = [kwargs[name] if name in kwargs else args[at] for at, name in _written(op)]
    for value in written:
        values = on_cpu[id(value)][1]
        if value.shape != values.shape:  # an empty ``out``, or `resize_`
            value.data = DEVICE_STATE.allocate(values)
    if written:
        return written[0] if len(written) == 1 else tuple(written)
    return _mapped(lambda part: _back(part, inputs), result)


def _mapped(function: object, value: object) -> object:
    """The results of a function for a value, or for what a list or tuple holds."""
    return type(value)(_mapped(function, part) for part in value) if type(value) in (list, tuple) else function(value)


def _copy(source: Tensor, target: Tensor) -> Tensor:
    """Copy in the device, to it, or from it."""
    if is_on_device(target) != is_on_device(source):
        DEVICE_STATE.transfer("to device" if is_on_device(target) else "to host")
    _on_cpu(target).copy_(_on_cpu(source))
    return target


def _cpu_operation(op: torch._ops.OpOverload, args: tuple[object, ...]) -> tuple[torch._ops.OpOverload, tuple]:
    """The operation of the CPU for one that torch reserves for devices of others."""
    if op is _aten.convolution_overrideable.default:
        return _aten.convolution.default, args
    if op is _aten.convolution_backward_overrideable.default:
        weight, output_mask = args[2], args[-1]
        n_outputs = weight.shape[1] * args[8] if args[6] else weight.shape[0]
        return _aten.convolution_backward.default, (*args[:3], [n_outputs] if output_mask[2] else None, *args[3:])
    return op, args


@functools.cache
def _written(op: torch._ops.OpOverload) -> list[tuple[int, str]]:
    """Place and name of the arguments that an operation in place, or with ``out``, returns."""
    arguments = [(at, a) for at, a in enumerate(op._schema.arguments) if a.alias_info is not None]
    is_returned = any(value.alias_info is not None and value.alias_info.is_write for value in op._schema.returns)
    return [(at, a.name) for at, a in arguments if a.alias_info.is_write] if is_returned else []


def _record(op: torch._ops.OpOverload, args: tuple[object, ...], tensors: list[Tensor]) -> None:
    """Refuse mixed devices, and count what the host waits for."""
    elsewhere = [value for value in tensors if not is_on_device(value) and value.dim()]
    if elsewhere and len(elsewhere) < len(tensors):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found {DEVICE} and {elsewhere[0].device} in {op}"
        )
    if torch.Tag.data_dependent_output in op.tags or _has_unknown_shape(op, args):
        DEVICE_STATE.wait()


def _has_unknown_shape(op: torch._ops.OpOverload, args: tuple[object, ...]) -> bool:
    if torch.Tag.dynamic_output_shape not in op.tags:
        return False
    if op is not _aten.index.Tensor:
        return True
    return any(isinstance(at, Tensor) and at.dtype in (torch.bool, torch.uint8) for at in args[1])


def _place() -> str:
    """File and function that asked for this operation: the innermost one outside torch and this file."""
    frame = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if path != __file__ and not path.startswith(_TORCH):
            return f"{'/'.join(Path(path).parts[-2:])}:{frame.f_code.co_name}"
        frame = frame.f_back
    return "autograd"


def _deepcopy_storage(storage: torch.UntypedStorage, memo: dict) -> torch.UntypedStorage:
    """As torch's own, which would need an allocator of the device."""
    if storage.device.type != NAME:
        return _copy_of_cpu_storage(storage, memo)
    copies = memo.setdefault("torch", {})
    if storage._cdata not in copies:
        memory = bytearray(ctypes.string_at(storage.data_ptr(), storage.nbytes()))
        values = torch.frombuffer(memory, dtype=torch.uint8).clone() if memory else torch.empty(0, dtype=torch.uint8)
        copies[storage._cdata] = DEVICE_STATE.allocate(values).untyped_storage()
    return copies[storage._cdata]


_copy_of_cpu_storage = torch.UntypedStorage.__deepcopy__


@functools.cache
def install() -> Device:
    """Register the device in this process, and as its accelerator."""
    from torch.utils import backend_registration as registration

    class Backend(registration._DummyBackendModule):
        """The module ``torch.sim``."""

        def get_amp_supported_dtype(self) -> list[torch.dtype]:
            return [torch.float16, torch.bfloat16]

        def is_autocast_enabled(self) -> bool:
            return False

        def synchronize(self, _device: object = None) -> None:
            DEVICE_STATE.wait()

        def mem_get_info(self, _device: object = None) -> tuple[int, int]:
            return MEMORY, MEMORY

    backend = Backend()
    registration._setup_privateuseone_for_python_backend(NAME, backend_module=backend)
    torch.accelerator.synchronize = backend.synchronize
    torch.UntypedStorage.__deepcopy__ = _deepcopy_storage
    library = torch.library.Library("_", "IMPL")
    library.fallback(_kernel, "PrivateUse1")
    convolutions = torch.library.Library("aten", "IMPL")  # torch has kernels that refuse, before the fallback
    for name in ("convolution_overrideable", "convolution_backward_overrideable"):
        convolutions.impl(name, functools.partial(_kernel, getattr(_aten, name).default), "PrivateUse1")
    DEVICE_STATE.libraries = [library, convolutions]  # registered for as long as they live
    return DEVICE_STATE
