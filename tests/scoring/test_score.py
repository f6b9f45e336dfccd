import json
import os

import numpy as np
import pandas as pd
import pytest

from rm_methods.benchmarks.item import BenchmarkItem, write_items
from rm_methods.benchmarks.score_table import SCORE_COLUMNS, read_scores
from rm_methods.errors import DataError, UserError
from rm_methods.files import file_hash
from rm_methods.methods.contract import Inputs
from rm_methods.methods.registry import load_method, load_method_card
from rm_methods.preferences.pair import write_pairs
from rm_methods.scoring.score import load_items, score_files
from rm_methods.scoring.scorer import ScoringSettings

GOOD = {"prompt": "Name a tree.", "chosen": "Oak.", "rejected": "Rock."}
OTHER = {"prompt": "Name a bird.", "chosen": "Kingfisher.", "rejected": "Car."}


def report_of(table):
    return json.loads((table.parent / f"{table.name}.report.json").read_text())


def test_items_pairs_and_preference_files_give_the_same_scores(reward_model, tokenizer, pairs, write_rows, tmp_path):
    reward_model.save(tmp_path / "model")
    tokenizer.tokenizer.save_pretrained(tmp_path / "model")
    items = [BenchmarkItem(p.pair_id, "s", p.prompt, [p.chosen, p.rejected], 0) for p in pairs[:4]]
    write_items(items, tmp_path / "items.parquet")
    write_pairs(pairs[:4], tmp_path / "pairs.parquet")
    write_rows(
        "raw.jsonl",
        *({"prompt": p.prompt[0]["content"], "chosen": p.chosen, "rejected": p.rejected} for p in pairs[:4]),
    )
    jobs = [
        (str(tmp_path / name), tmp_path / f"{name}.scores.parquet")
        for name in ("items.parquet", "pairs.parquet", "raw.jsonl")
    ]
    score_files(tmp_path / "model", jobs, None, ScoringSettings(max_length=256, threads=1))
    of_items, _, of_file = (report_of(out)["hashes"] for _, out in jobs)
    assert of_items == {"scores": file_hash(jobs[0][1]), "items": file_hash(tmp_path / "items.parquet")}
    assert of_file == {"scores": file_hash(jobs[2][1])}
    tables = [read_scores(out) for _, out in jobs]
    assert [len(table) for table in tables] == [8, 8, 8]
    for table in tables[1:]:
        np.testing.assert_allclose(tables[0].score, table.score, atol=1e-6)
        assert list(table.item_id) == list(tables[0].item_id)
    assert tables[0].score.dtype == np.float32
    model = report_of(jobs[0][1])["model"]
    assert model["folder"] == str((tmp_path / "model").resolve())
    computed = {name: model[name] for name in ("precision", "layout", "attention", "max_length")}
    assert computed == {"precision": "fp32", "layout": "packed", "attention": "sdpa", "max_length": 256}


def test_a_users_rows_keep_number_and_order_with_repetitions(longest, write_rows, tmp_path):
    path = write_rows("x.jsonl", OTHER, GOOD, GOOD | {"chosen": ""}, OTHER)
    score_files(longest, [(str(path), tmp_path / "s.parquet")], None, ScoringSettings())
    table = pd.read_parquet(tmp_path / "s.parquet")
    assert list(table.columns) == ["file", "row", *SCORE_COLUMNS]
    assert list(table.row) == [1, 1, 2, 2, 4, 4]
    assert list(table.score) == [11, 4, 4, 5, 11, 4]
    assert set(table.file) == {str(path)}


def test_tables_of_items_have_the_columns_they_always_had(longest, pairs, tmp_path):
    write_items([BenchmarkItem("a", "s", pairs[0].prompt, ["x", "y"], 0)], tmp_path / "items.parquet")
    score_files(longest, [(str(tmp_path / "items.parquet"), tmp_path / "s.parquet")], None, ScoringSettings())
    assert tuple(pd.read_parquet(tmp_path / "s.parquet").columns) == tuple(SCORE_COLUMNS)


def test_the_suffix_of_the_table_is_its_format(longest, write_rows, tmp_path):
    path = str(write_rows("x.jsonl", GOOD))
    score_files(
        longest, [(path, tmp_path / f"s{suffix}") for suffix in (".csv", ".jsonl", ".parquet")], None, ScoringSettings()
    )
    expected = pd.read_parquet(tmp_path / "s.parquet")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "s.csv"), expected, check_dtype=False)
    pd.testing.assert_frame_equal(pd.read_json(tmp_path / "s.jsonl", lines=True), expected, check_dtype=False)
    for name in ("s", "s.parqet", "s.json"):
        with pytest.raises(UserError, match=r"--out .*: the suffix names no format .* Allowed: .parquet, .csv, .jsonl"):
            score_files(longest, [(path, tmp_path / name)], None, ScoringSettings())


@pytest.mark.parametrize("rows", [[], [GOOD | {"chosen": ""}, GOOD | {"rejected": GOOD["chosen"]}]])
def test_nothing_left_to_score_is_an_error_that_says_why(longest, write_rows, tmp_path, rows):
    path = write_rows("x.jsonl", *rows)
    with pytest.raises(DataError, match="nothing is left to score") as error:
        score_files(longest, [(str(path), tmp_path / "s.parquet")], None, ScoringSettings())
    assert ("empty response (row 1)" in str(error.value)) == bool(rows)
    assert not (tmp_path / "s.parquet").exists()


def test_strict_refuses_data_with_a_row_that_cannot_be_scored(longest, write_rows, tmp_path):
    path = write_rows("x.jsonl", GOOD, GOOD | {"chosen": ""}, GOOD)
    jobs = [(str(path), tmp_path / "s.parquet")]
    with pytest.raises(DataError, match=r"1 of 3 rows are refused(.|\n)*empty response \(row 2\)"):
        score_files(longest, jobs, None, ScoringSettings(), strict=True)
    assert not (tmp_path / "s.parquet").exists()
    write_rows("x.jsonl", GOOD, GOOD)
    score_files(longest, jobs, None, ScoringSettings(), strict=True)
    assert (tmp_path / "s.parquet").exists()


def test_one_output_given_twice_is_refused_in_every_form(longest, write_rows, tmp_path, monkeypatch):
    one, two = str(write_rows("one.jsonl", GOOD)), str(write_rows("two.jsonl", OTHER))
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    table = tmp_path / "s.parquet"
    for other in (table, tmp_path / "link" / "s.parquet", tmp_path / "no" / ".." / "s.parquet", os.path.relpath(table)):
        with pytest.raises(UserError, match="writes the same file"):
            score_files(longest, [(one, table), (two, type(table)(other))], None, ScoringSettings())
    assert not table.exists()


def test_an_output_that_is_an_input_is_refused(longest, write_rows, tmp_path):
    path = write_rows("x.jsonl", GOOD)
    (tmp_path / "link.jsonl").symlink_to(path)
    (tmp_path / "folder").mkdir()
    part = write_rows("folder/train.jsonl", GOOD)
    before = path.read_text()
    for data, out in ((path, path), (path, tmp_path / "link.jsonl"), (part.parent, part)):
        with pytest.raises(UserError, match="this is the file of --data"):
            score_files(longest, [(str(data), out)], None, ScoringSettings())
    assert path.read_text() == before


def test_models_that_are_not_there_are_refused(write_rows, tmp_path):
    jobs = [(str(write_rows("x.jsonl", GOOD)), tmp_path / "s.parquet")]
    with pytest.raises(UserError, match="no such model folder"):
        score_files(tmp_path / "absent", jobs, None, ScoringSettings())
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"config\.json is missing"):
        score_files(tmp_path / "empty", jobs, None, ScoringSettings())


@pytest.fixture
def strict_template(reward_model, tokenizer, tmp_path):
    """Model folder whose chat template refuses system turns and leaves text between <think> tags out, and
    which asks for the date."""
    from copy import deepcopy

    template = (
        "{{ strftime_now('%d %B') }}{% for m in messages %}"
        "{% if m['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
        "[{{ m['role'] }}]{{ m['content'].split('</think>')[-1] }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    reward_model.save(tmp_path / "model")
    copied = deepcopy(tokenizer.tokenizer)
    copied.chat_template = template
    copied.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_rows_that_the_chat_template_refuses_are_refused_rows(strict_template, write_rows, tmp_path):
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a tree."}]
    path = write_rows("x.jsonl", GOOD, GOOD | {"prompt": prompt}, OTHER, GOOD | {"prompt": prompt})
    jobs = [(str(path), tmp_path / "s.parquet")]
    (text,) = score_files(strict_template, jobs, None, ScoringSettings(max_length=256))
    assert "2 pairs scored, 2 of 4 rows refused" in text
    refused = report_of(jobs[0][1])["read"]["refused"]
    (entry,) = refused.values()
    assert entry["count"] == 2
    assert entry["examples"][0].startswith(f"{path}, row 2: ")
    assert list(pd.read_parquet(jobs[0][1]).row) == [1, 1, 3, 3]
    with pytest.raises(DataError, match="2 of 4 rows are refused"):
        score_files(strict_template, jobs, None, ScoringSettings(max_length=256), strict=True)
    write_rows("x.jsonl", GOOD | {"prompt": prompt})
    with pytest.raises(DataError, match="nothing is left to score"):
        score_files(strict_template, jobs, None, ScoringSettings(max_length=256))


def test_rows_refused_before_and_after_truncation_are_all_refused_rows(strict_template, write_rows, tmp_path):
    template = strict_template / "chat_template.jinja"
    template.write_text("{% if tools %}{{ tools | tojson }}{% endif %}" + template.read_text())
    system = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a tree."}]
    tools = [{"name": f"tool_{k}", "description": "red"} for k in range(50)]
    path = write_rows("x.jsonl", GOOD, GOOD | {"prompt": system}, GOOD | {"tools": tools})
    score_files(strict_template, [(str(path), tmp_path / "s.parquet")], None, ScoringSettings(max_length=128))
    (entry,) = report_of(tmp_path / "s.parquet")["read"]["refused"].values()
    assert entry["count"] == 2
    assert "no system turns" in entry["examples"][0]
    assert "tools and template alone take" in entry["examples"][1]
    assert list(pd.read_parquet(tmp_path / "s.parquet").row) == [1, 1]


def test_items_that_the_chat_template_refuses_stop_a_benchmark(strict_template, tmp_path):
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a tree."}]
    write_items([BenchmarkItem("a", "s", prompt, ["x", "y"], 0)], tmp_path / "items.parquet")
    with pytest.raises(DataError, match="item a"):
        score_files(
            strict_template, [(str(tmp_path / "items.parquet"), tmp_path / "s.parquet")], None, ScoringSettings()
        )


def test_texts_that_the_chat_template_changes_are_counted(strict_template, write_rows, tmp_path):
    path = write_rows("x.jsonl", GOOD, OTHER | {"chosen": "<think>A bird.</think>Owl."})
    (text,) = score_files(strict_template, [(str(path), tmp_path / "s.parquet")], None, ScoringSettings(max_length=256))
    assert report_of(tmp_path / "s.parquet")["changed_by_template"] == 1
    assert "changed             1  texts, by the model's chat template" in text


def test_the_report_says_what_the_chat_template_does(strict_template, write_rows, tmp_path):
    (text,) = score_files(
        strict_template, [(str(write_rows("x.jsonl", GOOD)), tmp_path / "s.parquet")], None, ScoringSettings()
    )
    template = report_of(tmp_path / "s.parquet")["model"]["template"]
    assert (template["date"], template["system_turn"], template["strips_think"]) == ("2024-07-26", "refused", True)
    assert "conversations dated 2024-07-26" in " ".join(text.split())


@pytest.mark.parametrize("name", ["joint_decoder", "joint_encoder"])
def test_pairs_are_scored_with_joint_models(prepared, pairs, tmp_path, name):
    method = load_method(name, load_method_card(name).defaults())
    sections = {key: prepared[2][key] for key in ("backbone", "training")}
    inputs = Inputs(0, tmp_path, config=sections, backbone=prepared[1])
    reader = method.reader(pairs, inputs)
    method.model(pairs, reader, inputs).save(tmp_path / "model")
    reader.tokenizer.save_pretrained(tmp_path / "model")
    write_pairs(pairs[:3], tmp_path / "pairs.parquet")
    out = tmp_path / "s.parquet"
    score_files(tmp_path / "model", [(str(tmp_path / "pairs.parquet"), out)], None, ScoringSettings(max_length=256))
    assert len(read_scores(out)) == 6
    has_template = "template" in report_of(out)["model"]
    assert has_template == (name == "joint_decoder")  # the encoder reads text without one
    row = {"prompt": "Name a tree.", "completion": "Oak.", "label": True}
    (tmp_path / "single.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=r"some rows have one response, but the model compares the responses of a row"):
        score_files(tmp_path / "model", [(str(tmp_path / "single.jsonl"), out)], None, ScoringSettings(max_length=256))


def test_the_items_of_a_file_are_those_of_its_score_table(longest, write_rows, tmp_path):
    path = str(write_rows("x.jsonl", GOOD))
    score_files(longest, [(path, tmp_path / "s.parquet")], None, ScoringSettings())
    named = {(item.item_id, k) for item in load_items(path) for k in range(len(item.responses))}
    table = pd.read_parquet(tmp_path / "s.parquet")
    assert named == set(zip(table["item_id"], table["response_index"], strict=True))


def test_judged_rows_get_one_score_a_response_in_the_order_of_the_file(
    reward_model, tokenizer, pairs, write_rows, tmp_path
):
    reward_model.save(tmp_path / "model")
    tokenizer.tokenizer.save_pretrained(tmp_path / "model")
    prompts = [pair.prompt[0]["content"] for pair in pairs[:3]]
    texts = [[pair.chosen, pair.rejected] for pair in pairs[:3]]
    write_rows(
        "pairs.jsonl", *({"prompt": p, "chosen": a, "rejected": b} for p, (a, b) in zip(prompts, texts, strict=True))
    )
    write_rows(
        "scored.jsonl", *({"prompt": p, "responses": t, "scores": [2, 1]} for p, t in zip(prompts, texts, strict=True))
    )
    ratings = [
        {"prompt": p, "response_a": b, "response_b": a, "preference": "B"}
        for p, (a, b) in zip(prompts, texts, strict=True)
    ]
    write_rows("ratings.jsonl", *ratings)
    pointwise = [
        {"prompt": p, "completion": text, "label": text == t[0]}
        for p, t in zip(prompts, texts, strict=True)
        for text in t
    ]
    write_rows("pointwise.jsonl", *pointwise)
    names = ("pairs", "scored", "ratings", "pointwise")
    jobs = [(str(tmp_path / f"{name}.jsonl"), tmp_path / f"{name}.parquet") for name in names]
    score_files(tmp_path / "model", jobs, None, ScoringSettings(max_length=256, threads=1))
    table, scored, rated, single = (pd.read_parquet(out) for _, out in jobs)
    assert list(scored.row) == [1, 1, 2, 2, 3, 3]
    assert list(single.row) == [1, 2, 3, 4, 5, 6]
    swapped = [table.score[position] for position in (1, 0, 3, 2, 5, 4)]
    for other, expected in ((scored, table.score), (single, table.score), (rated, swapped)):
        np.testing.assert_allclose(other.score, expected, atol=1e-6)
    accuracies = [report_of(out)["metrics"]["accuracy"] for _, out in jobs]
    assert accuracies == [accuracies[0]] * 4
    assert accuracies[0]["items"] == 3


def test_calls_are_scored_and_rows_that_the_template_does_not_print_are_refused(
    reward_model, tokenizer, write_rows, tmp_path
):
    call = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "tree", "arguments": {}}}]}
    answer = {"role": "assistant", "content": "Oak."}
    prompt = [{"role": "user", "content": "Name a tree."}]
    with_call = {"prompt": prompt, "chosen": [call], "rejected": [answer]}
    path = write_rows("x.jsonl", GOOD, with_call, with_call | {"tools": [{"name": "tree"}]})
    reward_model.save(tmp_path / "model")
    tokenizer.tokenizer.save_pretrained(tmp_path / "model")
    settings = ScoringSettings(max_length=256, threads=1)
    score_files(tmp_path / "model", [(str(path), tmp_path / "all.parquet")], None, settings)
    table = pd.read_parquet(tmp_path / "all.parquet")
    assert list(table.row) == [1, 1, 2, 2, 3, 3]
    given = [*prompt, call]
    ids = tokenizer.tokenizer.apply_chat_template(given, tokenize=True, return_dict=True)["input_ids"]
    assert table.n_tokens[2] == len(ids)

    text_only = "{{ bos_token }}{% for m in messages %}{{ m.role + ':' + m.content + eos_token }}{% endfor %}"
    (tmp_path / "model" / "chat_template.jinja").write_text(text_only)
    score_files(tmp_path / "model", [(str(path), tmp_path / "text.parquet")], None, settings)
    assert set(pd.read_parquet(tmp_path / "text.parquet").row) == {1}
    refused = report_of(tmp_path / "text.parquet")["read"]["refused"]
    reason = "the model's chat template refuses the conversation"
    assert refused[reason]["count"] == 2
    assert refused[reason]["examples"][0].endswith(
        "row 2: turns user assistant: the template does not print tool calls"
    )
