"""A group of processes that nothing is sent through."""


class StatelessProcessGroup:
    @staticmethod
    def create(host: str, port: int, rank: int, world_size: int) -> None: ...
