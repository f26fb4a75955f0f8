"""A small Qwen2-architecture model and its tokenizer, made on the spot: no download, trains on a CPU."""

from collections.abc import Sequence

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

PAD, END = "<pad>", "<end>"


def build_tokenizer(largest_number: int = 60, words: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Return a tokenizer of whole numbers up to `largest_number`, single digits, arithmetic signs and `words`."""
    signs = list("+-*/()=:,;?")
    vocabulary = [PAD, END, *signs, *(str(number) for number in range(largest_number + 1)), *words]
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(vocabulary)}, unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"[0-9]+|[A-Za-z]+|."), "isolated")]
    )
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, padding_side="left")


def build_model(
    tokenizer: PreTrainedTokenizerFast, *, hidden_size: int = 96, layers: int = 3, seed: int = 0
) -> Qwen2ForCausalLM:
    """Return a randomly initialised model for the tokenizer: 0.3 million parameters by default."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=8 * hidden_size // 3,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        use_sliding_window=False,
    )
    return Qwen2ForCausalLM(config)
