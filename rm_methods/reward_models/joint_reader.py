"""The input of joint models: prompt, first and second response in one row, every token attending to every other.

A pair is always read in both orders, chosen first and rejected first, so that the position of a response never tells
its label.  Results of the model (a preference, an attention map) are averaged over the orders.

Shapes: M tokens of a joint row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from rm_methods.errors import UserError
from rm_methods.preferences.pair import Message
from rm_methods.preferences.tool_calls import prompt_text, readable, uses_tools
from rm_methods.reward_models.tokenization import ChatTokenizer, TokenizedItem

OUTSIDE = -1
PROMPT = 0
CHOSEN = 1
REJECTED = 2


@dataclass(frozen=True)
class JointRow:
    """One order of a pair.

    Attributes:
        ids: int32 [M].
        segment: int64 [M], PROMPT, CHOSEN or REJECTED (not first and second), OUTSIDE for tokens that are not text.
        spans: int64 [M, 2], characters [start, end) in the segment's text; (0, 0) outside.
        cut: whether the row did not fit and text was left out.
    """

    ids: np.ndarray
    segment: np.ndarray
    spans: np.ndarray
    cut: bool = False


@dataclass(frozen=True)
class PairText:
    """The text of a pair that both student and teacher read, after the student's truncation.

    Attributes:
        segments: prompt (contents of its messages, a newline between them), chosen, rejected.
        student: the student's tokens in the order [shared prompt | rest of chosen | rest of rejected].
    """

    segments: tuple[str, str, str]
    student: JointRow


def pair_text(tokenizer: ChatTokenizer, item: TokenizedItem) -> PairText | None:
    """The positions of the student's tokens of a pair in its text.

    Returns:
        None if no joint text exists: truncation left the two sequences with different prompts, or the pair has tools,
        whose JSON a template prints in a form of its choice.

    Raises:
        UserError: the chat template changes the characters of a message.
    """
    prompts = ["\n".join(m["content"] for m in conversation[:-1]) for conversation in item.conversations]
    if prompts[0] != prompts[1] or any(uses_tools(conversation) for conversation in item.conversations):
        return None
    chosen, rejected = (conversation[-1]["content"] for conversation in item.conversations)
    ids = []
    segments = []
    spans = []
    for k, (sequence, conversation) in enumerate(zip(item.sequences, item.conversations, strict=True)):
        text_spans = tokenizer.text_spans(conversation)
        response_start = len(prompts[0]) + 1
        in_response = text_spans[:, 0] >= response_start
        in_prompt = (text_spans[:, 1] > text_spans[:, 0]) & ~in_response
        segment = np.where(in_response, CHOSEN + k, np.where(in_prompt, PROMPT, OUTSIDE))
        text_spans = text_spans - np.where(in_response, response_start, 0)[:, None]
        start = item.shared if k else 0
        # A prompt token after the shared ones occurs once in each sequence; aligned twice it would count twice.
        segment[item.shared :][segment[item.shared :] == PROMPT] = OUTSIDE
        ids.append(sequence[start:])
        segments.append(segment[start:])
        spans.append(np.where(segment[start:, None] == OUTSIDE, 0, text_spans[start:]))
    student = JointRow(np.concatenate(ids), np.concatenate(segments), np.concatenate(spans))
    return PairText((prompts[0], chosen, rejected), student)


class EncoderReader:
    """Reads `[CLS] prompt [SEP] first [SEP] second [SEP]` with an encoder's tokenizer.

    Too long a text is cut: the oldest text of the prompt first, down to a quarter of the row, then the ends of the
    responses.

    Args:
        tokenizer: a fast Hugging Face tokenizer with tokens for start and separation (CLS and SEP, or BOS and EOS).
        max_length: longest row in tokens.
        opening: tokens before prompt, first and second response, for a model that needs others than one CLS in front.
    """

    def __init__(self, tokenizer, max_length: int, opening: Sequence[Sequence[int]] | None = None):
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.start = tokenizer.bos_token_id if tokenizer.cls_token_id is None else tokenizer.cls_token_id
        self.separator = tokenizer.eos_token_id if tokenizer.sep_token_id is None else tokenizer.sep_token_id
        if not tokenizer.is_fast or self.start is None or self.separator is None:
            raise UserError(
                f"{tokenizer.name_or_path}: a joint encoder needs a fast tokenizer with a start and a separator token, "
                f"found {type(tokenizer).__name__} with {self.start} and {self.separator}."
            )
        self.opening = opening or ((self.start,), (), ())

    @property
    def pad_id(self) -> int:
        """Id used for padding."""
        return self.tokenizer.pad_token_id or 0

    def encode(self, items: Iterable[tuple[Sequence[Message], Sequence[str]]]) -> list[TokenizedItem]:
        """Pairs (prompt, (first, second)) as items of two sequences: in this order, and in the other."""
        texts = []
        for prompt, (first, second) in items:
            texts.append((prompt_text(prompt), readable(first), readable(second)))
        return [_both_orders(rows) for rows in self.rows(texts)]

    def read(self, texts: Sequence[PairText], items: Sequence[TokenizedItem]) -> list[tuple[JointRow, JointRow]]:
        """Both orders of each pair: chosen first, rejected first."""
        return self.rows([text.segments for text in texts])

    def rows(self, texts: Sequence[tuple[str, str, str]]) -> list[tuple[JointRow, JointRow]]:
        """Both orders of (prompt, chosen, rejected)."""
        flat = [text for three in texts for text in three]
        if not flat:
            return []
        encoding = self.tokenizer(flat, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        parts = [
            (np.asarray(ids, dtype=np.int32), np.asarray(spans, dtype=np.int64).reshape(-1, 2))
            for ids, spans in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True)
        ]
        return [self._orders(parts[3 * k : 3 * k + 3]) for k in range(len(texts))]

    def _orders(self, parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[JointRow, JointRow]:
        """Both orders of a pair: (ids, spans) of prompt, chosen and rejected."""
        kept = self._fit([len(ids) for ids, _ in parts])
        is_cut = any(count < len(ids) for count, (ids, _) in zip(kept, parts, strict=True))
        fitted = []
        for segment, (count, (ids, spans)) in enumerate(zip(kept, parts, strict=True)):
            # The prompt loses its start, a response its end.
            tokens = slice(len(ids) - count, None) if segment == PROMPT else slice(count)
            fitted.append((ids[tokens], spans[tokens]))
        chosen_first = self._row(fitted, (PROMPT, CHOSEN, REJECTED), is_cut)
        rejected_first = self._row(fitted, (PROMPT, REJECTED, CHOSEN), is_cut)
        return chosen_first, rejected_first

    def _row(
        self, parts: Sequence[tuple[np.ndarray, np.ndarray]], order: tuple[int, int, int], is_cut: bool
    ) -> JointRow:
        ids = []
        segments = []
        spans = []
        for opening, segment in zip(self.opening, order, strict=True):
            part_ids, part_spans = parts[segment]
            around = (len(opening), 1)  # tokens of the opening, and the separator
            ids += [np.array(opening, dtype=np.int32), part_ids, np.array([self.separator], dtype=np.int32)]
            segments.append(np.pad(np.full(len(part_ids), segment), around, constant_values=OUTSIDE))
            spans.append(np.pad(part_spans, (around, (0, 0))))
        return JointRow(np.concatenate(ids), np.concatenate(segments), np.concatenate(spans), is_cut)

    def _fit(self, lengths: list[int]) -> list[int]:
        room = self.max_length - 3 - sum(map(len, self.opening))
        prompt, first, second = lengths
        prompt = min(prompt, max(room - first - second, room // 4))
        left = room - prompt
        half = left // 2
        if first + second <= left:
            return [prompt, first, second]
        # The same for both if both are long: a longer remainder of one of them would tell the label.
        return [prompt, min(first, max(half, left - second)), min(second, max(half, left - first))]


class DecoderReader:
    """Reads `[prompt | first | second]` in the student's tokens, so that student and teacher read the same ones.

    Args:
        tokenizer: the student's.
    """

    def __init__(self, tokenizer: ChatTokenizer):
        self.chat = tokenizer
        self.tokenizer = tokenizer.tokenizer
        self.template = tokenizer.template

    @property
    def pad_id(self) -> int:
        """Id used for padding."""
        return self.chat.pad_id

    def encode(self, items: Iterable[tuple[Sequence[Message], Sequence[str]]]) -> list[TokenizedItem]:
        """Pairs (prompt, (first, second)) as items of two sequences: in this order, and in the other."""
        encoded = []
        for item in self.chat.encode(items):
            first, second = (sequence[item.shared :] for sequence in item.sequences)
            prompt = item.sequences[0][: item.shared]
            orders = (np.concatenate([prompt, first, second]), np.concatenate([prompt, second, first]))
            first_ends = tuple(len(sequence) - 1 for sequence in item.sequences)
            marks = (item.prompt_cut, item.response_cut, item.prompt_changed, item.response_changed)
            prompt_cut, response_cut, prompt_changed, response_changed = ((any(mark),) * 2 for mark in marks)
            encoded.append(
                TokenizedItem(
                    orders,
                    0,
                    prompt_cut,
                    response_cut,
                    prompt_changed=prompt_changed,
                    response_changed=response_changed,
                    first_ends=first_ends,
                )
            )
        return encoded

    def read(self, texts: Sequence[PairText], items: Sequence[TokenizedItem]) -> list[tuple[JointRow, JointRow]]:
        """Both orders of each pair: chosen first, rejected first."""
        rows = []
        for text, item in zip(texts, items, strict=True):
            row = text.student
            chosen_end = len(item.sequences[0])
            position = np.arange(len(row.ids))
            prompt = position[: item.shared]
            swapped = np.concatenate([prompt, position[chosen_end:], position[item.shared : chosen_end]])
            rows.append((row, JointRow(row.ids[swapped], row.segment[swapped], row.spans[swapped])))
        return rows


def _both_orders(rows: tuple[JointRow, JointRow]) -> TokenizedItem:
    cut = (rows[0].cut, rows[1].cut)
    return TokenizedItem((rows[0].ids, rows[1].ids), 0, cut, (False, False))
