"""Weight updates of vLLM over gloo: what TRL and vLLM do over NCCL, on a CPU."""


def register_engine() -> None:
    """Register the engine; vLLM calls this in each of its processes, maybe more than once."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory  # noqa: PLC0415 - slow

    if "gloo" not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine("gloo", "maxent_cpu_sync.engine", "GlooWeightTransferEngine")
