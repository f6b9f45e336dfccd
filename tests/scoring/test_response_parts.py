import numpy as np

from rm_methods.reward_models.tokenization import TokenizedItem
from rm_methods.scoring.response_parts import split_responses


def item(prompt, *responses):
    sequences = tuple(np.array([*prompt, *r], dtype=np.int32) for r in responses)
    no = (False,) * len(responses)
    return TokenizedItem(sequences, len(prompt), no, no)


def test_responses_are_split_where_a_forward_is_full_by_hand():
    whole = item([1, 2], [3, 3, 3], [4], [5, 5], [6, 6, 6, 6, 6], [7])
    # Packed: 2 for the prompt, then 3 + 1 = 6 in all; 2 more would be 8.  5 + 2 = 7 fit alone, 1 more does not.
    assert [part.lengths for part in split_responses(whole, "packed", 7)] == [(5, 3), (4,), (7,), (3,)]
    # Plain: rows as long as the longest of the part: 2 x 5 = 10; a third would make 15.
    assert [part.lengths for part in split_responses(whole, "plain", 10)] == [(5, 3), (4,), (7,), (3,)]
    assert [part.lengths for part in split_responses(whole, "plain", 15)] == [(5, 3, 4), (7, 3)]
    assert split_responses(whole, "packed", 14) == [whole]
    assert len(split_responses(whole, "packed", 13)) == 2
    assert [part.lengths for part in split_responses(whole, "packed", 1)] == [(5,), (3,), (4,), (7,), (3,)]


def test_parts_keep_the_prompt_and_what_is_known_of_each_response():
    whole = TokenizedItem(
        item([1, 2], [3], [4, 4], [5]).sequences, 2, (False, True, False), (False, False, True), ("a", "b", "c")
    )
    first, second = split_responses(whole, "packed", 5)
    assert (first.shared, first.prompt_cut, first.response_cut, first.conversations) == (
        2,
        (False, True),
        (False, False),
        ("a", "b"),
    )
    assert (second.shared, second.prompt_cut, second.response_cut, second.conversations) == (
        2,
        (False,),
        (True,),
        ("c",),
    )
    assert [s.tolist() for part in (first, second) for s in part.sequences] == [[1, 2, 3], [1, 2, 4, 4], [1, 2, 5]]
