"""Completions of prompts: by transformers in the order of the demo's sampling, or by vLLM where it is installed."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

BATCH_TOKENS = 2**18
"""New tokens of a batch unless `batch_prompts` says otherwise; the demo's evaluation, of 65536, is one batch."""


@dataclass(frozen=True)
class Sample:
    """A completion.

    Attributes:
        text: without special tokens.
        ids: its tokens, with the one that ends it.
    """

    text: str
    ids: list[int]


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn.

    Attributes:
        samples: completions of a prompt.
        temperature: 0 is greedy.
        max_new_tokens: where a completion is cut.
        seed: of all batches together; the same seed, batches and machine give the same completions.
        batch_prompts: prompts of a batch, with transformers; None takes as many as make `BATCH_TOKENS`.
    """

    samples: int
    temperature: float
    max_new_tokens: int
    seed: int
    batch_prompts: int | None = None

    @property
    def prompts_at_once(self) -> int:
        """How many prompts make a batch."""
        return self.batch_prompts or max(1, BATCH_TOKENS // (self.samples * self.max_new_tokens))


def choose_engine(engine: str) -> str:
    """Return the engine to use: with `auto` vLLM where it is installed and there is a GPU, else transformers.

    Raises:
        ValueError: if vLLM is asked for and is not installed.
    """
    installed = importlib.util.find_spec("vllm") is not None
    if engine == "vllm" and not installed:
        raise ValueError("Expected vLLM to be installed (pip install vllm), got --engine vllm without it.")
    if engine == "auto":
        return "vllm" if installed and torch.cuda.is_available() else "transformers"
    return engine


def load_tokenizer(model: str, revision: str | None) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model, padding on the left.

    Raises:
        ValueError: naming the model, if there is none.
    """
    if is_missing_folder(model):
        raise ValueError(f"Expected a model that can be read, got {model!r}: no such folder.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, revision=revision, padding_side="left")
    except (OSError, ValueError) as error:
        raise ValueError(explain_missing_model(model, error)) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def is_missing_folder(model: str) -> bool:
    """Tell whether a model's name can only be a folder's, and there is none: no matter of the Hub's.

    >>> is_missing_folder("runs/nothere"), is_missing_folder("/nothere"), is_missing_folder("nobody/knows")
    (True, True, False)
    """
    path = Path(model)
    parts = len(path.parts)
    local = (
        path.is_absolute() or model.startswith((".", "runs/")) or parts > 2 or (parts == 2 and path.parent.is_dir())
    )
    return local and not path.exists()


def explain_missing_model(model: str, error: BaseException) -> str:
    """Return why a model cannot be read."""
    reason = (str(error).strip().splitlines() or [""])[0]
    if Path(model).is_dir():
        reason = reason if (Path(model) / "config.json").is_file() else "the folder has no config.json"
    return f"Expected a model that can be read, got {model!r}: {reason}"


def render_prompts(prompts: Sequence[Any], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return prompts as the model reads them: chats through its template, without the first token it adds itself."""
    texts = []
    for prompt in prompts:
        if isinstance(prompt, str):
            texts.append(prompt)
            continue
        text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        texts.append(text.removeprefix(tokenizer.bos_token or ""))
    return texts


class Transformers:
    """Samples with `transformers`, one batch of prompts after the other."""

    def __init__(self, model: str, revision: str | None, dtype: str) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer = load_tokenizer(model, revision)
        self.model = AutoModelForCausalLM.from_pretrained(model, revision=revision, dtype=dtype).to(device).eval()

    @torch.no_grad()
    def draw_samples(self, prompts: Sequence[str], sampling: Sampling) -> list[list[Sample]]:
        """Return [P][samples] completions."""
        size = sampling.prompts_at_once
        completions: list[Sample] = []
        with torch.random.fork_rng():
            torch.manual_seed(sampling.seed)
            for first in range(0, len(prompts), size):
                completions += self._sample_batch(list(prompts[first : first + size]), sampling)
        samples = sampling.samples
        return [completions[first : first + samples] for first in range(0, len(completions), samples)]

    def _sample_batch(self, prompts: list[str], sampling: Sampling) -> list[Sample]:
        encoded = self.tokenizer(prompts, return_tensors="pt", padding=True).to(self.model.device)
        input_ids = encoded["input_ids"].repeat_interleave(sampling.samples, dim=0)
        # What a checkpoint's generation_config.json prefers would not be samples of the model.
        choice: dict[str, Any] = {"do_sample": False, "repetition_penalty": 1.0}
        if sampling.temperature > 0:
            choice |= {"do_sample": True, "temperature": sampling.temperature, "top_k": 0, "top_p": 1.0}
        generated = self.model.generate(
            input_ids=input_ids,
            attention_mask=encoded["attention_mask"].repeat_interleave(sampling.samples, dim=0),
            max_new_tokens=sampling.max_new_tokens,
            pad_token_id=self.tokenizer.pad_token_id,
            **choice,
        )
        completions = generated[:, input_ids.shape[1] :]
        texts = self.tokenizer.batch_decode(completions, skip_special_tokens=True)
        return [Sample(*pair) for pair in zip(texts, self._cut_padding(completions), strict=True)]

    def _cut_padding(self, completions: torch.Tensor) -> list[list[int]]:
        """Return each row's ids up to the first that ends a completion."""
        ends = torch.as_tensor(self.model.generation_config.eos_token_id or [], device=completions.device)
        is_end = torch.isin(completions, ends)
        counted = is_end.cumsum(-1) - is_end.long() == 0
        return [row[kept].tolist() for row, kept in zip(completions, counted, strict=True)]


class VLLM:
    """Samples with vLLM, all prompts at once."""

    def __init__(self, model: str, revision: str | None, dtype: str) -> None:
        from vllm import LLM  # noqa: PLC0415  (an optional engine)

        self.tokenizer = load_tokenizer(model, revision)
        self.model = LLM(model=model, revision=revision, dtype=dtype)

    def draw_samples(self, prompts: Sequence[str], sampling: Sampling) -> list[list[Sample]]:
        """Return [P][samples] completions."""
        from vllm import SamplingParams  # noqa: PLC0415

        settings = SamplingParams(
            n=sampling.samples,
            temperature=sampling.temperature,
            top_p=1.0,
            top_k=0,
            max_tokens=sampling.max_new_tokens,
            seed=sampling.seed,
        )
        results = self.model.generate(list(prompts), settings)
        return [[Sample(each.text, list(each.token_ids)) for each in result.outputs] for result in results]


ENGINES: dict[str, Any] = {"transformers": Transformers, "vllm": VLLM}
