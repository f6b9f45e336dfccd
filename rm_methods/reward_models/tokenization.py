"""From conversations to token ids: the chat template is applied once, one BOS, truncation is explicit and counted.

Each (prompt, response) is rendered and tokenized as a whole, exactly as `tokenizer.apply_chat_template(messages,
tokenize=True)` does, so the ids are those that any other server of the saved model will use.  The shared prompt of
several responses is their longest common prefix of tokens within the prompt.  This is exact for every tokenizer, even
if a merge straddles the boundary.

Tools, calls and results of tools (`rm_methods.preferences.tool_calls`) are rendered by the template too.  A
conversation of which the template prints no tools, no calls or no results is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from rm_methods.errors import UserError
from rm_methods.preferences.pair import Message
from rm_methods.preferences.tool_calls import TOOLS, text_and_records, uses_tools
from rm_methods.reward_models.template_probe import (
    CallForm,
    RefusedConversation,
    conversation,
    pin_date,
    probe_template,
    render,
)
from rm_methods.reward_models.tool_turns import left_out, prints, with_text, without_last_arguments, without_oldest


@dataclass(frozen=True)
class TokenizedItem:
    """One prompt with N responses.

    Attributes:
        sequences: N arrays of token ids (int32), each the whole conversation with one response.
        shared: number of leading tokens within the prompt that are equal in all sequences.
        prompt_cut: per response, whether the prompt was shortened (oldest turns first, then the start of the last one).
        response_cut: per response, whether the end of the response was cut, because it alone does not fit.
        conversations: per response, the rendered messages: the prompt after truncation, then the response.
        prompt_changed: per response, whether the chat template left out or changed text of the prompt, white space
            aside.
        response_changed: the same for the text of the response (mostly `<think>` blocks).
        first_ends: per sequence, the last token of the first response; only of joint rows of a decoder
            (rm_methods.reward_models.joint_reader).
    """

    sequences: tuple[np.ndarray, ...]
    shared: int
    prompt_cut: tuple[bool, ...]
    response_cut: tuple[bool, ...]
    conversations: tuple[tuple[Message, ...], ...] = ()
    prompt_changed: tuple[bool, ...] = ()
    response_changed: tuple[bool, ...] = ()
    first_ends: tuple[int, ...] = ()

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each whole sequence."""
        return tuple(len(s) for s in self.sequences)

    @property
    def truncated(self) -> tuple[bool, ...]:
        """Per response, whether anything was cut."""
        return tuple(p or r for p, r in zip(self.prompt_cut, self.response_cut, strict=True))


@dataclass(frozen=True)
class OfficialText:
    """How the official script of a benchmark turns a rendered conversation into tokens.

    The scripts render the chat template to text, and tokenize the text with special tokens and truncation.

    Attributes:
        max_length: longest sequence in tokens; None for no truncation.
        truncation_side: "left" or "right", where tokens are cut.
        keeps_double_bos: whether a second start token, from a template that prints one, stays.
    """

    max_length: int | None
    truncation_side: str
    keeps_double_bos: bool


@dataclass(frozen=True)
class _Sequence:
    """One response of an item: tokens, number of prompt tokens, and the rest as in `TokenizedItem`."""

    ids: np.ndarray
    prompt_tokens: int
    messages: tuple[Message, ...]
    prompt_cut: bool
    response_cut: bool
    prompt_changed: bool
    response_changed: bool


class RefusedConversations(UserError):
    """The chat template refuses some of the conversations to encode.

    Attributes:
        reasons: for each refused item, by its position, the template's message.
    """

    def __init__(self, message: str, reasons: dict[int, str]):
        super().__init__(message)
        self.reasons = reasons

    def naming(self, names: Sequence[str], remedy: str) -> str:
        """The message with the first refused items by their names, and with what to do."""
        refused = list(self.reasons)
        listed = ", ".join(names[position] for position in refused[:3]) + (", ..." if len(refused) > 3 else "")
        return f"{self} Refused: {listed}. {remedy}"


class ChatTokenizer:
    """Applies a tokenizer and its chat template to conversations.

    Args:
        tokenizer: a fast Hugging Face tokenizer with a chat template; a template that prints the date gets a fixed one
            (`pin_date`).
        max_length: longest sequence in tokens (prompt and response together).

    Attributes:
        template: properties of the chat template, see `probe_template`.
        official: tokens as in an official script, instead of the rules above; None by default.

    Raises:
        UserError: no fast tokenizer, no chat template, or one that `probe_template` refuses.
    """

    def __init__(self, tokenizer, max_length: int):
        if not tokenizer.is_fast:
            raise UserError(
                f"{tokenizer.name_or_path}: only fast tokenizers are supported (character offsets are needed)."
            )
        if not tokenizer.chat_template:
            raise UserError(
                f"{tokenizer.name_or_path}: the tokenizer has no chat template. Name a Jinja file in "
                "backbone.chat_template (--chat-template for a model to score), or use a chat model."
            )
        self.tokenizer = tokenizer
        self.max_length = max_length
        pin_date(tokenizer)
        self.template = probe_template(tokenizer)
        tools = self.template["tools"]
        self._form = CallForm(tools["arguments_as_text"], tools["empty_content"])
        self.official: OfficialText | None = None

    @property
    def pad_id(self) -> int:
        """Id used for padding; never read by the reward (lengths are explicit)."""
        return self.tokenizer.pad_token_id

    def encode(self, items: Iterable[tuple[Sequence[Message], Sequence[str]]]) -> list[TokenizedItem]:
        """Tokenize (prompt, responses) items.  Every response of every item is kept; what was cut or changed is marked.

        Raises:
            RefusedConversations: the chat template refuses some of them; none is tokenized.
        """
        items = list(items)
        texts, boundaries = self._rendered(items)
        if not texts:
            return []
        if self.official is not None:
            return self._official_items(items, texts, boundaries, self.official)
        encoding = self.tokenizer(
            texts, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False
        )
        encoded = []
        reasons = {}
        start = 0
        for number, (prompt, responses) in enumerate(items):
            parts = []
            try:
                for position, response in enumerate(responses, start=start):
                    ids = encoding["input_ids"][position]
                    prompt_tokens = _tokens_before(encoding["offset_mapping"][position], boundaries[position])
                    parts.append(self._sequence(prompt, response, texts[position], ids, prompt_tokens))
                encoded.append(_item(parts))
            except RefusedConversation as error:  # of what truncation leaves
                reasons[number] = error.reason
            start += len(responses)
        self._check_refused(reasons, len(items))
        return encoded

    def _official_items(
        self,
        items: Sequence[tuple[Sequence[Message], Sequence[str]]],
        texts: Sequence[str],
        boundaries: Sequence[int],
        official: OfficialText,
    ) -> list[TokenizedItem]:
        """`encode` as an official script does it."""
        whole = self.tokenizer(list(texts), return_attention_mask=False, verbose=False)["input_ids"]
        side = self.tokenizer.truncation_side
        self.tokenizer.truncation_side = official.truncation_side
        try:
            encoding = self.tokenizer(
                list(texts),
                truncation=official.max_length is not None,
                max_length=official.max_length,
                return_offsets_mapping=True,
                return_attention_mask=False,
                verbose=False,
            )
        finally:
            self.tokenizer.truncation_side = side
        encoded = []
        position = 0
        for prompt, responses in items:
            parts = []
            for response in responses:
                ids = encoding["input_ids"][position]
                offsets = encoding["offset_mapping"][position]
                is_cut = len(ids) < len(whole[position])
                if not official.keeps_double_bos and _starts_twice(ids, self.tokenizer.bos_token_id):
                    ids, offsets = ids[1:], offsets[1:]
                # Special tokens of the tokenizer, at the ends, have the empty span (0, 0).
                in_prompt = sum(end <= boundaries[position] for _, end in offsets[: len(offsets) - 1])
                text = texts[position]
                parts.append(
                    _Sequence(
                        ids=np.asarray(ids, dtype=np.int32),
                        prompt_tokens=in_prompt,
                        messages=conversation(prompt, response),
                        prompt_cut=is_cut and official.truncation_side == "left",
                        response_cut=is_cut and official.truncation_side == "right",
                        prompt_changed=not all(prints(text, message) for message in prompt),
                        response_changed=not prints(text, conversation((), response)[0]),
                    )
                )
                position += 1
            encoded.append(_item(parts))
        return encoded

    def _sequence(
        self, prompt: Sequence[Message], response: str, text: str, ids: Sequence[int], prompt_tokens: int
    ) -> _Sequence:
        """One sequence, cut if it is too long.

        Args:
            text: the rendered conversation.
            ids: its tokens.
            prompt_tokens: number of tokens within the prompt.
        """
        messages = fitting = conversation(prompt, response)
        prompt_cut = False
        response_cut = False
        if len(ids) > self.max_length:
            fitting, (prompt_cut, response_cut) = self._truncate(prompt, response)
            ids, prompt_tokens = self._ids(fitting)
        return _Sequence(
            ids=np.asarray(ids, dtype=np.int32),
            prompt_tokens=min(prompt_tokens, len(ids) - 1),
            messages=fitting,
            prompt_cut=prompt_cut,
            response_cut=response_cut,
            prompt_changed=not all(prints(text, message) for message in prompt),
            response_changed=not prints(text, messages[-1]),
        )

    def _rendered(self, items: Sequence[tuple[Sequence[Message], Sequence[str]]]) -> tuple[list[str], list[int]]:
        """The text of each response's conversation, and the number of its characters that belong to the prompt."""
        texts = []
        boundaries = []
        reasons = {}
        for position, (prompt, responses) in enumerate(items):
            try:
                head = self.rendered(prompt, add_generation_prompt=True)
                whole = [self.rendered(conversation(prompt, response)) for response in responses]
                self._check_tools(prompt, responses, whole)
            except RefusedConversation as error:
                reasons[position] = error.reason
                continue
            texts += whole
            boundaries += [_common_prefix(head, text) for text in whole]
        self._check_refused(reasons, len(items))
        return texts, boundaries

    def rendered(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        """The text of a conversation, with tool calls in the form that the template prints."""
        return render(self.tokenizer, messages, add_generation_prompt, self._form)

    def _check_tools(self, prompt: Sequence[Message], responses: Sequence[str], texts: Sequence[str]) -> None:
        """Raises RefusedConversation if the template leaves out tools, calls or results.

        Args:
            texts: the rendered conversations, one for each response.
        """
        if not uses_tools(prompt, responses):
            return
        for response, text in zip(responses, texts, strict=True):
            messages = conversation(prompt, response)
            if part := left_out(self.template, self.rendered, messages, text):
                problem = UserError(f"the template does not print {part}")
                raise RefusedConversation(self.tokenizer.name_or_path, messages, problem)

    def _check_refused(self, reasons: dict[int, str], count: int) -> None:
        if reasons:
            first = next(iter(reasons.values()))
            raise RefusedConversations(
                f"The chat template of {self.tokenizer.name_or_path} refuses {len(reasons)} of {count} "
                f"conversations. The first: {first}.",
                reasons,
            )

    def text_spans(self, messages: Sequence[Message]) -> np.ndarray:
        """The positions of the tokens of a conversation (of `TokenizedItem.conversations`) in its text.

        Raises:
            UserError: the chat template changes a message's characters.
        """
        text = self.rendered(messages)
        offsets = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        response_start = _common_prefix(self.rendered(messages[:-1], add_generation_prompt=True), text)
        return spans_in_text(text, offsets, messages, response_start)

    def hash(self) -> str:
        """Hash of everything that token ids depend on: vocabulary, special tokens, chat template with its date."""
        digest = hashlib.sha256(self.tokenizer.backend_tokenizer.to_str().encode("utf-8"))
        example, _ = self._ids(conversation([{"role": "user", "content": "a"}], "b"))
        for part in (self.tokenizer.chat_template, sorted(self.tokenizer.special_tokens_map.items()), example):
            digest.update(str(part).encode("utf-8"))
        return digest.hexdigest()[:16]

    def _ids(self, messages: Sequence[Message]) -> tuple[list[int], int]:
        """Token ids of a conversation, and the number of those within its prompt."""
        text = self.rendered(messages)
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        boundary = _common_prefix(self.rendered(messages[:-1], add_generation_prompt=True), text)
        return encoding["input_ids"], _tokens_before(encoding["offset_mapping"], boundary)

    def _truncate(self, prompt: Sequence[Message], response: str) -> tuple[tuple[Message, ...], tuple[bool, bool]]:
        """Make one sequence fit: cut the oldest turns, the start of the last user turn, and the end of the response.

        The last user turn keeps at least a quarter of `max_length` (or all of itself) before the response is touched.
        The template's closing tokens always stay, because the reward is read there. Tools stay, and no result loses its
        call (`tool_turns.without_oldest`). Texts of the last results are cut after the last user turn. Arguments of
        calls are emptied last, the response's first.

        Returns:
            The shortened sequence, and whether prompt and response were cut.

        Raises:
            RefusedConversation: the tools and the template alone are too long.
        """
        answer = whole_answer = conversation((), response)[0]
        kept = int(prompt[0]["role"] == TOOLS)
        if len(prompt) > kept and prompt[kept]["role"] == "system":
            kept += 1
        fixed, turns = prompt[:kept], list(prompt[kept:])
        count = len(turns)
        while (left := without_oldest(turns)) is not None:
            turns = left
            if self._excess([*fixed, *turns, answer]) <= 0:
                return (*fixed, *turns, answer), (True, False)

        prompt_cut = len(turns) != count
        for position, turn in enumerate(turns):
            if turn["role"] == "assistant" and len(turns) > 1:
                continue
            keep = 0 if turn["role"] == "tool" else self.max_length // 4
            content, _ = text_and_records(turn)
            while (excess := self._excess([*fixed, *turns, answer])) > 0:
                shorter = self._drop_tokens(content, excess, keep, from_start=True)
                if shorter == content:
                    break
                content = shorter
                turns[position] = with_text(turn, content)
                prompt_cut = True
        excess = self._excess([*fixed, *turns, answer])
        if excess <= 0:
            return (*fixed, *turns, answer), (prompt_cut, False)

        shortened, _ = text_and_records(answer)
        while excess > 0 and shortened:
            shortened = self._drop_tokens(shortened, excess, 0, from_start=False)
            answer = with_text(answer, shortened)
            excess = self._excess([*fixed, *turns, answer])
        messages = [*fixed, *turns, answer]
        for position in reversed(range(len(messages))):
            while excess > 0 and (emptied := without_last_arguments(messages[position])) is not None:
                messages[position] = emptied
                prompt_cut |= position < len(messages) - 1
                excess = self._excess(messages)
        if excess > 0:
            needed = excess + self.max_length
            if uses_tools(prompt, [response]):
                problem = UserError(f"tools and template alone take {needed} tokens, more than {self.max_length}")
                raise RefusedConversation(self.tokenizer.name_or_path, messages, problem)
            raise UserError(
                f"backbone.max_length = {self.max_length} is too small: the chat template alone takes {needed} tokens."
            )
        return tuple(messages), (prompt_cut, messages[-1] != whole_answer)

    def _excess(self, messages: Sequence[Message]) -> int:
        """Tokens beyond `max_length`."""
        return len(self._ids(messages)[0]) - self.max_length

    def _drop_tokens(self, text: str, count: int, keep: int, *, from_start: bool) -> str:
        """`text` without about `count` tokens at one end, leaving at least `keep` tokens."""
        offsets = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        count = min(count, max(len(offsets) - keep, 0))
        if count == 0:
            return text
        if count >= len(offsets):
            return ""
        return text[offsets[count][0] :] if from_start else text[: offsets[len(offsets) - count][0]]


def _item(parts: Sequence[_Sequence]) -> TokenizedItem:
    """An item of the sequences of its responses."""
    sequences = [part.ids for part in parts]
    return TokenizedItem(
        sequences=tuple(sequences),
        shared=min(_common_prefix_of_ids(sequences), *(part.prompt_tokens for part in parts)),
        prompt_cut=tuple(part.prompt_cut for part in parts),
        response_cut=tuple(part.response_cut for part in parts),
        conversations=tuple(part.messages for part in parts),
        prompt_changed=tuple(part.prompt_changed for part in parts),
        response_changed=tuple(part.response_changed for part in parts),
    )


def _starts_twice(ids: Sequence[int], start: int | None) -> bool:
    return start is not None and list(ids[:2]) == [start, start]


def spans_in_text(
    rendered: str, offsets: Sequence[tuple[int, int]], messages: Sequence[Message], response_start: int
) -> np.ndarray:
    """The positions of tokens of a rendered conversation in the text of its messages.  Tools and calls are no text.

    Args:
        rendered: the conversation as the chat template prints it.
        offsets: character spans [start, end) of the tokens in `rendered`.
        messages: in the stored form; the template must print their texts (blanks at the ends may be cut).
        response_start: end of the template's text before the last message.

    Returns:
        int64 [tokens, 2], spans in the contents joined by one newline each; (0, 0) for tokens outside of them.

    Raises:
        UserError: the template changes a message's characters.
    """
    offsets_T2 = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    spans = np.zeros_like(offsets_T2)
    contents = [message["content"] for message in messages]
    # The last message is the first match after its start, because the template's closing text may repeat its words. The
    # others are searched from the back, because the role markers before them may contain their words.
    end = len(rendered)
    content_start = sum(len(content) + 1 for content in contents)  # where the message starts in the joined contents
    for number, content in reversed(list(enumerate(contents))):
        content_start -= len(content) + 1
        words = "" if messages[number]["role"] == TOOLS else text_and_records(messages[number])[0].strip()
        last_message = number == len(contents) - 1
        if last_message:
            end = response_start
        if not words:
            continue
        start = rendered.find(words, response_start) if last_message else rendered.rfind(words, 0, end)
        if start < 0:
            raise UserError(
                f"The chat template changes the characters of a message, so tokens cannot be aligned: {words[:80]!r} "
                "is not in the rendered conversation. Use a template that prints messages unchanged."
            )
        shift = content_start + content.index(words) - start
        first = np.maximum(offsets_T2[:, 0], start)
        last = np.minimum(offsets_T2[:, 1], start + len(words))
        inside = first < last
        spans[inside] = np.stack([first, last], axis=1)[inside] + shift
        end = min(end, start)
    return spans


def _common_prefix(first: str, second: str) -> int:
    """Characters that two texts have in common at their start."""
    if second.startswith(first):
        return len(first)
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def _tokens_before(offsets: Sequence[tuple[int, int]], boundary: int) -> int:
    """Number of leading tokens that end at or before character `boundary`."""
    ends = np.fromiter((end for _, end in offsets), dtype=np.int64, count=len(offsets))
    beyond = np.nonzero(ends > boundary)[0]
    return int(beyond[0]) if len(beyond) else len(offsets)


def _common_prefix_of_ids(sequences: Sequence[np.ndarray]) -> int:
    """Leading tokens that all sequences share."""
    length = min(len(s) for s in sequences)
    first = sequences[0][:length]
    different = np.zeros(length, dtype=bool)
    for other in sequences[1:]:
        different |= other[:length] != first
    where = np.nonzero(different)[0]
    return int(where[0]) if len(where) else length
