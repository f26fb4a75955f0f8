"""What OpenRLHF asks of CUDA, answered by a CPU: it names devices by number, and a mesh by "cuda"."""

import torch
from torch.distributed import device_mesh


class Processor(str):
    """The CPU's name, which stands for device 0 where a number is expected."""

    def __format__(self, _: str) -> str:
        return "0"


def answer_for_cuda() -> None:
    """Let `torch.cuda` name the CPU, and meshes be made on it."""
    torch.cuda.current_device = lambda: Processor("cpu")
    torch.cuda.set_device = lambda device: None
    torch.cuda.synchronize = lambda device=None: None
    torch.cuda.current_stream = lambda device=None: None
    make_mesh = device_mesh.init_device_mesh
    device_mesh.init_device_mesh = lambda device, *shape, **names: make_mesh("cpu", *shape, **names)


if not torch.cuda.is_available():
    answer_for_cuda()
