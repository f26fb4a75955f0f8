"""The one-pass head that the TRL adapter adds to a model, where the head is a shard in another precision."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertLMHeadModel,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
    RobertaConfig,
    RobertaForCausalLM,
)

from maxent_grpo.adapters.trl.head import add_weighted_head
from support import trl_tiny


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of this process only: FSDP2 shards, gathers and casts as among many."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("float32", [False, True], ids=["bfloat16 head", "float32 head"])
def test_under_fsdp2_the_head_is_gathered_in_the_precision_it_projects_in(float32: bool) -> None:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    ids = torch.randint(2, 11, (3, 9), generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([[1.0, -0.5, 0.0, 2.0]]).expand(3, 4)  # exact in bfloat16, to which FSDP2 casts inputs

    def step(model: nn.Module) -> list[torch.Tensor]:
        result = model(input_ids=ids, token_weights=weights)
        result.loss.backward()
        gradients = [model.get_parameter(name).grad for name in ("lm_head.weight", "model.norm.weight")]
        whole = [getattr(gradient, "full_tensor", lambda own=gradient: own)() for gradient in gradients]
        return [result.loss.detach(), result.log_probs, *whole]

    sharded, plain = trl_tiny.build_model(), trl_tiny.build_model()
    for parameter in (plain.model if float32 else plain).parameters():
        parameter.data = parameter.data.bfloat16()  # and no buffer, as FSDP2
    for model in (sharded, plain):
        add_weighted_head(model, temperature=0.7, float32=float32)
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for module in (sharded.model, sharded.lm_head, sharded):
        fully_shard(module, mp_policy=policy)
    for got, wanted in zip(step(sharded), step(plain), strict=True):
        assert torch.equal(got, wanted)  # the same operations on the same numbers


SMALL = {
    "vocab_size": 11,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "pad_token_id": trl_tiny.PAD,
    "bos_token_id": trl_tiny.EOS,
    "eos_token_id": trl_tiny.EOS,
}
SHALLOW = SMALL | {"num_hidden_layers": 1, "initializer_range": 0.5}
RECURRENT = {"lru_width": 16, "attention_window_size": 8, "logits_soft_cap": 1.0, "w_init_variance_scale": 4.0}
OTHER_LOGITS = {
    "bert": lambda: BertLMHeadModel(BertConfig(**SHALLOW, is_decoder=True)),
    "roberta": lambda: RobertaForCausalLM(RobertaConfig(**SHALLOW, is_decoder=True, max_position_embeddings=66)),
    "recurrent_gemma": lambda: RecurrentGemmaForCausalLM(
        RecurrentGemmaConfig(**SMALL, **RECURRENT, num_hidden_layers=3)
    ),
}
KNOWN_LOGITS = {
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SHALLOW, num_key_value_heads=1, head_dim=8, final_logit_softcapping=1.0)
    ),
    "cohere": lambda: CohereForCausalLM(CohereConfig(**SHALLOW, num_key_value_heads=1, logit_scale=3.0)),
    "granite": lambda: GraniteForCausalLM(GraniteConfig(**SHALLOW, num_key_value_heads=1, logits_scaling=3.0)),
    "qwen2 in bfloat16": lambda: trl_tiny.build_model().bfloat16(),
}


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("name", OTHER_LOGITS)
def test_a_model_that_does_more_to_its_logits_is_refused_by_name(name: str, bf16: bool, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"its head's product with the last hidden states.*got model_type='{name}'"):
        trl_tiny.build_trainer(tmp_path, policy=OTHER_LOGITS[name](), bf16=bf16)


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("name", KNOWN_LOGITS)
def test_a_model_whose_logits_are_known_is_taken(name: str, bf16: bool, tmp_path: Path) -> None:
    trl_tiny.build_trainer(tmp_path, policy=KNOWN_LOGITS[name](), temperature=0.7, bf16=bf16)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_trls_default_precision_trains(fused: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    """TRL's `bf16` is True unless it is said otherwise, on a CPU too, and its models are loaded in float32."""
    policy = trl_tiny.build_model().to(dtype)
    before = policy.lm_head.weight.detach().clone()
    trainer = trl_tiny.build_trainer(
        tmp_path, policy=policy, bf16=None, maxent_fused_head=fused, learning_rate=0.1, max_steps=2
    )
    trainer.train()
    assert trainer.args.bf16
    assert not torch.equal(policy.lm_head.weight, before)
    assert all(math.isfinite(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry)
