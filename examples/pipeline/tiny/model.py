"""A small Qwen2-architecture model and its tokenizer, made on the spot: no download, trains on a CPU."""

from collections.abc import Sequence

import torch
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

PAD, END = "<pad>", "<end>"
SIGNS = "+-*/()=:,;?"


def build_tokenizer(largest_number: int = 60, words: Sequence[str] = ()) -> Qwen2Tokenizer:
    """Return a tokenizer of whole numbers up to `largest_number`, arithmetic signs and `words`.

    All of them are added tokens that swallow the space before them: `AutoTokenizer` loads the tokenizer of any
    Qwen2 model as a `Qwen2Tokenizer`, which splits everything else into single digits.
    """
    tokenizer = Qwen2Tokenizer(
        vocab={PAD: 0, END: 1}, merges=[], unk_token=PAD, pad_token=PAD, eos_token=END, padding_side="left"
    )
    vocabulary = [*SIGNS, *(str(number) for number in range(largest_number + 1)), *words]
    tokenizer.add_tokens([AddedToken(token, lstrip=True, normalized=False) for token in vocabulary])
    return tokenizer


def build_model(
    tokenizer: PreTrainedTokenizerBase, *, hidden_size: int = 96, layers: int = 3, seed: int = 0
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
