"""A policy: a plain causal-language-model folder, how prompts become token ids, and how sampled ids become text.

The folder holds what any other program needs: config, safetensors, the tokenizer with its chat template, and a
generation configuration with end and pad tokens.  A response is the text between the generation prompt and the first
end token.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rm_methods.errors import UserError
from rm_methods.files import written_atomically
from rm_methods.preferences.pair import Message, PreferencePair
from rm_methods.preferences.tool_calls import uses_tools
from rm_methods.reward_models.model_folder import write_checksums
from rm_methods.reward_models.template_probe import conversation, pin_date, render
from rm_methods.system.engines import look_for_engines_only_with_deepspeed


@dataclass(frozen=True)
class Prompt:
    """A conversation that ends with a user message, and its name in sample and evaluation files."""

    prompt_id: str
    messages: Sequence[Message]


@dataclass
class Policy:
    """A causal language model with its tokenizer.

    Attributes:
        model: a transformers causal language model in evaluation mode (no dropout, so that sampling and training
            agree).
        tokenizer: a fast tokenizer with a chat template and a separate pad token.
        end_ids: token ids that end a response; the first is the one that the chat template prints after a response.
    """

    model: Any
    tokenizer: Any
    end_ids: tuple[int, ...]

    @property
    def pad_id(self) -> int:
        """Pads prompts on the left and responses on the right; never read."""
        return self.tokenizer.pad_token_id

    def encode_prompts(
        self, prompts: Iterable[Sequence[Message]], max_prompt_tokens: int
    ) -> tuple[list[list[int]], list[bool]]:
        """Token ids of prompts, up to and including the generation prompt.

        A prompt that does not fit is cut as reward models cut it: the oldest turns first (a system turn stays), then
        the start of the last user turn.

        Returns:
            ids of each prompt, and for each whether it was cut.

        Raises:
            UserError: the chat template refuses a conversation, not even its last turn can be made to fit, or a prompt
                has tools.
        """
        from rm_methods.reward_models.tokenization import ChatTokenizer

        # With an empty response, so that the cut prompt fits together with the template's closing tokens.
        cutter = ChatTokenizer(self.tokenizer, max_prompt_tokens)
        encoded, cut = [], []
        for messages in prompts:
            refuse_tools(messages)
            ids = _prompt_ids(self.tokenizer, messages)
            too_long = len(ids) > max_prompt_tokens
            if too_long:
                shortened: Sequence[Message] = messages
                with suppress(UserError):
                    shortened = cutter.encode([(messages, [""])])[0].conversations[0][:-1]
                ids = _prompt_ids(self.tokenizer, shortened)
                if len(ids) > max_prompt_tokens:
                    raise UserError(
                        f"max_prompt_tokens = {max_prompt_tokens} is too small for the chat template of "
                        f"{self.tokenizer.name_or_path}: a prompt still takes {len(ids)} tokens when cut to its last "
                        "turn. Raise max_prompt_tokens."
                    )
            encoded.append(ids)
            cut.append(too_long)
        return encoded, cut

    def check_room(self, prompt_ids: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        """Raises UserError if the longest prompt and a response do not fit the positions that the model was made
        for."""
        limit = getattr(self.model.config, "max_position_embeddings", None)
        longest = max(map(len, prompt_ids), default=0)
        if limit is not None and longest + max_new_tokens > limit:
            raise UserError(
                f"A prompt of {longest} tokens and max_new_tokens = {max_new_tokens} are more than the {limit} "
                "positions of the policy. Lower max_new_tokens or max_prompt_tokens."
            )

    def decode(self, response_ids: Sequence[int]) -> str:
        """Text of a response up to its first end token, without special tokens."""
        ids = [int(i) for i in response_ids]
        end = next((k for k, i in enumerate(ids) if i in self.end_ids), len(ids))
        return self.tokenizer.decode(ids[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)


def refuse_tools(prompt: Sequence[Message], responses: Sequence[str] = ()) -> None:
    """Raises UserError for a conversation with tools or calls: policies write text, and cannot call."""
    if uses_tools(prompt, responses):
        raise UserError(
            "Policies write text, but a prompt or a response to learn from has tools or tool calls. Reward models "
            "can be trained and evaluated on such pairs; for over-optimization (Best-of-N, PPO), use data without "
            "them. data.options.tools_field: null leaves out tools that no turn calls."
        )


def prompts_of(pairs: Iterable[PreferencePair]) -> list[Prompt]:
    """The different prompts of preference pairs in their order; the prompt id is the pair's group."""
    by_group: dict[str, Prompt] = {}
    for pair in pairs:
        by_group.setdefault(pair.group, Prompt(pair.group, pair.prompt))
    return list(by_group.values())


def prompts_of_split(pairs: Iterable[PreferencePair], split: str, limit: int | None) -> list[Prompt]:
    """Prompts of a split, each once, in a random order that is always the same.

    Args:
        limit: largest number of prompts; None takes all.

    Raises:
        UserError: the split has no pairs, or prompts with tools.
    """
    pairs = list(pairs)
    prompts = prompts_of([pair for pair in pairs if pair.split == split])
    if not prompts:
        splits = ", ".join(sorted({pair.split for pair in pairs}))
        raise UserError(f"overoptimization.prompts: the split '{split}' has no pairs. Splits of the data: {splits}.")
    for prompt in prompts:
        refuse_tools(prompt.messages)
    random.Random(f"prompts of {split}").shuffle(prompts)
    return prompts[:limit]


def load_policy(folder: str | Path, dtype: str = "float32", attention: str = "auto") -> Policy:
    """Load a policy folder.

    Args:
        dtype: of the weights: "float32", "bfloat16" or "float16".
        attention: implementation of transformers: "auto", "sdpa", "eager" or "flash_attention_2".

    Raises:
        UserError: no such folder, not a causal language model, no chat template, no end token, no pad token, or a pad
            token that ends a response.
    """
    from transformers import AutoModelForCausalLM

    from rm_methods.reward_models.loading import pretrained_model, pretrained_tokenizer

    folder = Path(folder)
    if not (folder / "config.json").is_file():
        problem = "has no config.json" if folder.is_dir() else "does not exist"
        raise UserError(f"{folder}: {problem}. A policy is a folder with a causal language model; fine-tune one first.")
    model, _ = pretrained_model(AutoModelForCausalLM, folder, dtype=dtype, attention=attention)
    return make_policy(model, pretrained_tokenizer(folder))


def policy_from_backbone(folder: Path, backbone: dict[str, Any], seed: int) -> Policy:
    """The policy that a prepared backbone is before any training; a tiny backbone has random weights, drawn from the
    seed.

    Args:
        folder: of `rm_methods.reward_models.backbones.prepare_backbone`.
        backbone: the resolved `backbone` section of the configuration.
    """
    import torch

    from rm_methods.reward_models.backbones import load_language_model
    from rm_methods.reward_models.loading import pretrained_tokenizer

    model = load_language_model(folder, backbone, seed).to(torch.float32)
    return make_policy(model, pretrained_tokenizer(folder))


def make_policy(model, tokenizer) -> Policy:
    """A policy of a model and its tokenizer, in evaluation mode on its device (a GPU if the machine has one).

    Raises:
        UserError: no chat template, no end token, no pad token, or a pad token that ends a response.
    """
    import torch

    name = tokenizer.name_or_path
    if not tokenizer.chat_template:
        raise UserError(
            f"{name}: the tokenizer has no chat template, so prompts cannot be rendered. Put chat_template.jinja "
            "beside it."
        )
    pin_date(tokenizer)
    end_ids = _end_ids(tokenizer, model.generation_config)
    if not end_ids:
        raise UserError(
            f"{name}: no end token is named, so responses would never end. Set eos_token in tokenizer_config.json or "
            "eos_token_id in generation_config.json."
        )
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in end_ids:
        seen = (
            "no pad token is named"
            if tokenizer.pad_token_id is None
            else f"the pad token {tokenizer.pad_token!r} also ends a response"
        )
        raise UserError(
            f"{name}: {seen}. Set pad_token in tokenizer_config.json to a token that ends nothing (preparing the "
            "backbone does that)."
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.config.pad_token_id = tokenizer.pad_token_id
    return Policy(model.to(device).eval(), tokenizer, end_ids)


def save_policy(policy: Policy, folder: str | Path, weights: Mapping[str, Any] | None = None) -> None:
    """Write a policy folder, atomically.  Its generation configuration samples from the model itself (temperature 1,
    no top-k).

    Args:
        weights: state dictionary to write instead of the model's own.
    """
    from transformers import GenerationConfig

    model = policy.model
    # With a folder's path in the config, the files of two machines would differ.
    model.config._name_or_path = ""
    model.generation_config = GenerationConfig(
        bos_token_id=policy.tokenizer.bos_token_id,
        eos_token_id=list(policy.end_ids),
        pad_token_id=policy.pad_id,
        do_sample=True,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
    )
    look_for_engines_only_with_deepspeed()
    with written_atomically(folder) as path:
        model.save_pretrained(path, state_dict=weights)
        policy.tokenizer.save_pretrained(path)
        write_checksums(path)


def _prompt_ids(tokenizer, messages: Sequence[Message]) -> list[int]:
    return tokenizer(render(tokenizer, messages, add_generation_prompt=True), add_special_tokens=False)["input_ids"]


def _end_ids(tokenizer, generation_config) -> tuple[int, ...]:
    """The token that the template closes a response with, then those that tokenizer and generation configuration
    name."""
    named = generation_config.eos_token_id if generation_config is not None else None
    named = [] if named is None else [named] if isinstance(named, int) else list(named)
    if tokenizer.eos_token_id is not None:
        named.append(tokenizer.eos_token_id)
    probe = [{"role": "user", "content": "a"}]
    head = render(tokenizer, probe, add_generation_prompt=True) + "b"
    whole = render(tokenizer, conversation(probe, "b"))
    tail = tokenizer(whole[len(head) :], add_special_tokens=False)["input_ids"] if whole.startswith(head) else []
    # Ordinary text after a response, such as a line break, is no end token.
    closing = [i for i in tail[:1] if i in named or tokenizer.convert_ids_to_tokens(i) in _special_tokens(tokenizer)]
    return tuple(dict.fromkeys([*closing, *named]))


def _special_tokens(tokenizer) -> set[str]:
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return added | set(tokenizer.all_special_tokens)
