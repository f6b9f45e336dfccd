import numpy as np
import pytest

from rm_methods.errors import UserError
from rm_methods.methods.joint_encoder import _words
from rm_methods.reward_models.joint_reader import (
    CHOSEN,
    OUTSIDE,
    PROMPT,
    REJECTED,
    DecoderReader,
    EncoderReader,
    pair_text,
)


@pytest.fixture
def words(pairs):
    return _words(pairs, 1000)


def covered(row, texts):
    """The text of each token of a row."""
    return [
        None if kind == OUTSIDE else texts[kind][start:end]
        for kind, (start, end) in zip(row.segment, row.spans.tolist(), strict=True)
    ]


def test_an_encoder_reads_both_orders(words):
    reader = EncoderReader(words, 64)
    texts = ("Paint it", "red.", "blue")
    chosen_first, rejected_first = reader.rows([texts])[0]
    assert covered(chosen_first, texts) == [None, "Paint", "it", None, "red", ".", None, "blue", None]
    assert covered(rejected_first, texts) == [None, "Paint", "it", None, "blue", None, "red", ".", None]
    assert rejected_first.segment.tolist() == [
        OUTSIDE,
        PROMPT,
        PROMPT,
        OUTSIDE,
        REJECTED,
        OUTSIDE,
        CHOSEN,
        CHOSEN,
        OUTSIDE,
    ]
    special = chosen_first.ids[[0, 3, 6, 8]].tolist()
    assert special == [words.cls_token_id] + [words.sep_token_id] * 3
    assert not chosen_first.cut


def test_what_does_not_fit_is_cut_oldest_prompt_first(words):
    texts = ("a b c d e f g h", "i j k", "l m")
    row = EncoderReader(words, 4 + 9).rows([texts])[0][0]
    assert [t for t in covered(row, texts) if t] == ["e", "f", "g", "h", "i", "j", "k", "l", "m"]
    assert row.cut
    # A quarter of the row is kept for the prompt; then both responses lose their ends.
    row = EncoderReader(words, 4 + 4).rows([("a b", "c d e f g", "h i j k l")])[0][1]
    assert [t for t in covered(row, ("a b", "c d e f g", "h i j k l")) if t] == ["b", "h", "c"]
    row = EncoderReader(words, 4 + 6).rows([("a b", "c", "h i j k l m n")])[0][0]
    assert [t for t in covered(row, ("a b", "c", "h i j k l m n")) if t] == ["b", "c", "h", "i", "j", "k"]


def test_encoded_pairs_have_two_sequences_and_nothing_shared(words):
    item = EncoderReader(words, 64).encode([([{"role": "user", "content": "Paint"}], ("red", "blue"))])[0]
    assert item.shared == 0
    assert sorted(item.sequences[0].tolist()) == sorted(item.sequences[1].tolist())
    assert item.sequences[0].tolist() != item.sequences[1].tolist()


def test_a_decoder_reads_the_students_tokens_in_both_orders(tokenizer, pairs):
    items = tokenizer.encode((p.prompt, (p.chosen, p.rejected)) for p in pairs[:4])
    reader = DecoderReader(tokenizer)
    texts = [pair_text(tokenizer, item) for item in items]
    for item, text, rows, encoded in zip(
        items,
        texts,
        reader.read(texts, items),
        reader.encode((p.prompt, (p.chosen, p.rejected)) for p in pairs[:4]),
        strict=True,
    ):
        for row, sequence in zip(rows, encoded.sequences, strict=True):
            assert row.ids.tolist() == sequence.tolist()
        assert covered(rows[0], text.segments).count(None) == covered(rows[1], text.segments).count(None)
        chosen = [t for t, kind in zip(covered(rows[1], text.segments), rows[1].segment, strict=True) if kind == CHOSEN]
        assert "".join(chosen) == text.segments[CHOSEN]
        read = item.shared + sum(length - item.shared for length in item.lengths)
        assert len(rows[0].ids) == read
        assert encoded.first_ends == tuple(length - 1 for length in item.lengths)


def test_every_character_of_a_pair_is_covered_by_the_students_tokens(tokenizer, pairs):
    pair = pairs[0]
    prompt = [{"role": "system", "content": "Be kind."}, *pair.prompt]
    item = tokenizer.encode([(prompt, (pair.chosen, "na\u00efve \U0001f600 caf\u0065\u0301"))])[0]
    text = pair_text(tokenizer, item)
    assert text.segments == (
        f"Be kind.\n{pair.prompt[0]['content']}",
        pair.chosen,
        "na\u00efve \U0001f600 caf\u0065\u0301",
    )
    for kind, segment in enumerate(text.segments):
        inside = np.zeros(len(segment), dtype=bool)
        for start, end in text.student.spans[text.student.segment == kind]:
            inside[start:end] = True
        assert all(inside[k] or segment[k] == "\n" for k in range(len(segment)))


def test_a_pair_whose_prompts_were_cut_differently_has_no_joint_text(tokenizer):
    tokenizer = type(tokenizer)(tokenizer.tokenizer, 64)
    prompt = [{"role": "user", "content": "one two three four five six seven eight nine ten " * 4}]
    same, different = tokenizer.encode(
        [(prompt, ("yes", "yep")), (prompt, ("yes", "no no no no no no no no no no no"))]
    )
    assert pair_text(tokenizer, different) is None
    assert pair_text(tokenizer, same) is not None or same.sequences[0].shape != same.sequences[1].shape


def test_a_tokenizer_without_special_tokens_is_refused(tokenizer):
    bare = type(tokenizer.tokenizer)(tokenizer_object=tokenizer.tokenizer.backend_tokenizer)
    with pytest.raises(UserError, match="needs a fast tokenizer with a start and a separator token"):
        EncoderReader(bare, 64)
