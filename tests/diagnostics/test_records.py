import numpy as np
import pytest

from rm_methods.benchmarks.item import BenchmarkItem
from rm_methods.diagnostics.pairs import DiagnosedPair, TextTokens
from rm_methods.diagnostics.position_bins import stage_mass
from rm_methods.diagnostics.records import ATTENTION_COLUMNS, attention_rows, masking_rows, read_diagnostics
from rm_methods.errors import DataError
from rm_methods.parquet import write_rows
from rm_methods.reward_models.tokenization import TokenizedItem

PAIR = DiagnosedPair("heldout", BenchmarkItem("i", "test", [], ["a", "b"], 1), better=1)
MASS = np.array([[0.4, 0.1, 0.2, 0.2, 0.1], [0.1, 0.2, 0.3, 0.2, 0.2]], dtype=np.float32)


def rows(scores, is_text=(0, 1, 0, 1, 0)):
    text = TextTokens(np.array(is_text, dtype=bool), np.array([0, 0, 0, 1, 0], dtype=bool))
    encoded = TokenizedItem((np.arange(5), np.arange(5)), 2, (False, False), (False, True))
    return attention_rows(
        PAIR,
        encoded,
        texts=[text, text],
        scores=np.array(scores, dtype=np.float32),
        masses=[MASS, MASS],
        layers=[1, 2],
    )


def test_the_template_is_dropped_and_its_mass_reported():
    first, second = rows([0.0, 1.0])
    assert (first["response_index"], first["chosen"], second["chosen"]) == (0, False, True)
    assert (first["n_tokens"], first["n_text_tokens"], second["truncated"]) == (5, 2, True)
    assert first["reward_row"] == pytest.approx(stage_mass(MASS[0]).tolist())
    assert first["received"] == pytest.approx(stage_mass(MASS[1]).tolist())
    # Two text tokens, five stages each.
    assert first["reward_row_text"] == pytest.approx([0.1 / 0.3 / 5] * 5 + [0.2 / 0.3 / 5] * 5)
    assert first["received_text"] == pytest.approx([0.1] * 10)
    assert first["reward_row_dropped"] == pytest.approx(0.7)
    assert first["received_dropped"] == pytest.approx(0.6)


def test_the_first_token_is_dropped_though_it_is_text():
    first, _ = rows([0.0, 1.0], is_text=(1, 1, 0, 1, 0))
    assert first["n_text_tokens"] == 2
    assert first["reward_row_dropped"] == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("scores", "correct"),
    [([0, 1], True), ([1, 0], False), ([1, 1], None), ([1, 1 + 1e-12], None), ([np.nan, 1], None), ([np.inf, 1], None)],
)
def test_a_pair_is_correct_if_its_better_response_scores_higher(scores, correct):
    assert [row["correct"] for row in rows(scores)] == [correct] * 2
    (masked,) = masking_rows([PAIR], {("sequence", 0): np.array([scores], dtype=np.float32)})
    assert masked["chosen_score"] == np.float32(scores[1])
    if correct is not None:
        assert masked["credit"] == float(correct)


def test_rows_survive_the_file_and_other_files_are_refused(tmp_path):
    write_rows(rows([1.0, 1.0]) + rows([0.0, 1.0], is_text=(0, 0, 0, 0, 0)), ATTENTION_COLUMNS, tmp_path / "a.parquet")
    frame = read_diagnostics(tmp_path / "a.parquet", ATTENTION_COLUMNS)
    assert frame["correct"].tolist() == [None, None, True, True]
    assert frame["layers"][0].tolist() == [1, 2]
    assert np.isnan(frame["reward_row_text"][2]).all()
    with pytest.raises(DataError, match="not a table of diagnostics"):
        read_diagnostics(tmp_path / "a.parquet", {"percent": "int32"})
    (tmp_path / "b.parquet").write_text("no")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        read_diagnostics(tmp_path / "b.parquet", ATTENTION_COLUMNS)
