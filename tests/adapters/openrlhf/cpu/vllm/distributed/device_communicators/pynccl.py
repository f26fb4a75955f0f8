"""Sends weights nowhere."""

from typing import Any


class PyNcclCommunicator:
    def __init__(self, group: Any, device: Any) -> None: ...

    def broadcast(self, tensor: Any, src: int, stream: Any) -> None: ...
