import ast
import errno
import json
import subprocess
import sys
from dataclasses import asdict

import click
import pytest
import yaml
from click.testing import CliRunner

from rm_methods.cli import main
from tests.conftest import REPOSITORY


def invoke(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from click.testing import CliRunner; from rm_methods.cli import main;"
        "assert 'train' in CliRunner().invoke(main, ['--help']).output;"
        "heavy = {'torch', 'transformers', 'numpy', 'pandas', 'mlflow', 'yaml'} & set(sys.modules); assert not heavy, "
        "heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


def test_a_verb_seldom_searches_what_it_imported_for_garbage():
    code = (
        "import gc; from click.testing import CliRunner; from rm_methods.cli import main;"
        "assert CliRunner().invoke(main, ['list', 'methods']).exit_code == 0;"
        "assert gc.get_threshold()[0] == 10_000, gc.get_threshold()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


@pytest.mark.parametrize(
    ("what", "expected"), [("methods", "bradley_terry"), ("benchmarks", "rm_bench"), ("datasets", "alpaca_eval")]
)
def test_lists_name_what_a_configuration_can_name(what, expected):
    result = invoke("list", what)
    assert result.exit_code == 0
    assert expected in result.output


def test_methods_are_listed_one_a_line():
    from rm_methods.methods.registry import load_method_card, method_names

    lines = invoke("list", "methods").stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(method_names())
    for line in lines:
        name, title = line.split(maxsplit=1)
        assert title == load_method_card(name).title
    assert max(map(len, lines)) <= 100


def test_every_verb_is_in_one_group_of_the_help_with_its_whole_summary():
    lines = CliRunner().invoke(main, ["--help"], terminal_width=200).stdout.splitlines()
    for name, command in main.commands.items():
        (line,) = [line for line in lines if line.split()[:1] == [name] and line.startswith("  " + name)]
        assert line.split(maxsplit=1)[1] == command.help.split("\n\n")[0].replace("\n", " ")
        assert not line.endswith("...")
    headings = [line.rstrip(":").split(" (")[0] for line in lines if line and not line.startswith(" ")]
    assert headings[1:] == ["Options", "Use", "Share a model", "Stages of the workflow, by hand", "Plumbing"]
    assert any("rm-methods check --config my.yaml" in line for line in lines)


def test_every_option_has_help():
    assert [
        f"{name} {option.opts[0]}"
        for name, command in main.commands.items()
        for option in command.params
        if isinstance(option, click.Option) and not option.help
    ] == []


def test_a_method_is_shown_with_everything_of_its_card():
    from rm_methods.methods.registry import load_method_card, method_names

    for name in method_names():
        result = invoke("show", name)
        assert result.exit_code == 0, result.output
        words = " ".join(result.stdout.split())
        card = load_method_card(name)
        for text in (card.title, card.citation, card.cost, *(s["description"] for s in card.settings.values())):
            assert " ".join(text.split()) in words
        copied = yaml.safe_load("methods:" + result.stdout.split("\nmethods:")[1])
        assert copied == {"methods": {name: card.defaults()}}


def test_settings_are_shown_with_type_default_and_bounds():
    words = invoke("show", "interaction_distillation").stdout
    for line in (
        "kind     trained: a reward model that scores each response alone",
        "needs    teacher: a joint variant, or uniform",
        "warmup_fraction: a number, at least 0 and at most 1; default 0.1",
        "heads: each or averaged; default each",
        "teacher_heads: all or a list (each a whole number, at least 1); default all",
    ):
        assert line in words
    assert "No settings." in invoke("show", "random").stdout


def test_an_unknown_method_is_not_shown():
    result = invoke("show", "bradly_terry")
    assert result.exit_code == 2
    assert "Did you mean 'bradley_terry'?" in result.output


def test_an_unknown_list_is_refused():
    assert invoke("list", "modles").exit_code == 2


def test_user_errors_are_text_and_exit_with_2(tmp_path):
    (tmp_path / "c.yaml").write_text("experiment: x\ndata: {dataset: world}\nmethods: {bradly_terry: {}}\n")
    result = invoke("check", "--config", tmp_path / "c.yaml")
    assert result.exit_code == 2
    assert "Did you mean 'bradley_terry'" in result.output
    assert "Traceback" not in result.output


def test_a_message_does_not_repeat_a_long_value(tmp_path):
    method = "bradley " * 20_000
    (tmp_path / "c.yaml").write_text(
        f"experiment: x\ndata: {{dataset: world}}\nmethods: {{mine: {{method: '{method}'}}}}\n"
    )
    result = invoke("check", "--config", tmp_path / "c.yaml")
    assert result.exit_code == 2
    assert "methods.mine" in result.output
    assert "characters left out" in result.output
    assert len(result.output) < 4000


def test_check_says_ok_and_what_would_run(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "experiment: x\ndata: {dataset: world}\nseeds: [0, 4]\nmethods: {bradley_terry: {}, longest: {}}\n"
        "benchmarks: {world: {}}\n"
    )
    result = invoke("check", "--config", tmp_path / "c.yaml")
    assert result.exit_code == 0
    # The longest response is the same for every seed.
    assert result.stdout == (
        f"OK: {tmp_path}/c.yaml: experiment x: 3 runs; 2 variants: bradley_terry, longest; 2 seeds: 0, 4; "
        "1 benchmark: world\nNot checked: the contents of the data, which the workflow reads first.\n"
    )
    assert result.stderr == (
        "WARNING: With 2 seeds, no difference between methods can be tested. 3 or more are needed, for example "
        "`seeds: [0, 1, 2]`.\n"
    )


@pytest.mark.parametrize(
    ("over", "warnings"),
    [
        ("seeds: [0, 1, 2]", []),
        ("seeds: [7]", ["With 1 seed, no difference"]),
        ("seeds: [7]\ntuning: {enabled: true, learning_rates: [1.0e-3, 2.0e-3]}", []),
        ("training: {validation: {times: 3}, early_stopping: {patience: 2}}", ["training.early_stopping is on, and"]),
        ("training: {validation: {times: 3}, early_stopping: {patience: 2}, keep: best}", []),
    ],
)
def test_check_warns_of_what_its_author_may_not_want(tmp_path, over, warnings):
    (tmp_path / "c.yaml").write_text(f"experiment: x\ndata: {{dataset: world}}\nmethods: {{hinge: {{}}}}\n{over}\n")
    result = invoke("check", "--config", tmp_path / "c.yaml")
    assert result.exit_code == 0, result.output
    said = [line.removeprefix("WARNING: ") for line in result.stderr.splitlines()]
    assert len(said) == len(warnings)
    assert all(line.startswith(start) for line, start in zip(said, warnings, strict=True))


def test_check_in_full_prints_the_configuration_with_all_defaults(tmp_path):
    (tmp_path / "c.yaml").write_text("experiment: x\ndata: {dataset: world}\nmethods: {bradley_terry: {}}\n")
    result = invoke("check", "--full", "--config", tmp_path / "c.yaml")
    assert yaml.safe_load(result.output)["training"]["pairs_per_step"] == 64


@pytest.mark.parametrize(
    ("rows", "extra", "passes"),
    [
        ([{}, {}], "", False),
        ([{}, {}], ", test_fraction: 0.5", True),
        ([{}, {"split": "Test "}], "", True),
        ([{}, {"split": "dev"}], "", False),
        ([{}, {"part": "test"}], ", options: {split_field: part}", True),
        (None, "", True),
    ],
)
def test_held_out_pairs_must_come_from_somewhere(tmp_path, rows, extra, passes):
    """From a fraction, a column of splits, or the names of files."""
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    data = tmp_path / "data"
    data.mkdir()
    for name in ["pairs"] if rows else ["train", "test"]:
        (data / f"{name}.jsonl").write_text("".join(json.dumps(pair | row) + "\n" for row in rows or [{}]))
    dataset = data / "pairs.jsonl" if rows else data
    (tmp_path / "c.yaml").write_text(
        f"experiment: x\ndata: {{dataset: {dataset}{extra}}}\n"
        "methods: {longest: {}}\nbenchmarks: {heldout: {}}\n"
    )
    result = invoke("check", "--config", tmp_path / "c.yaml")
    assert result.exit_code == (0 if passes else 2), result.output
    assert ("benchmarks.heldout: is made of the split test" in result.output) != passes


def test_scoring_by_hand(tmp_path):
    """A content-blind scorer on two pairs: the longer answer is chosen in one of them."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "scorer.json").write_text(json.dumps({"method": "longest", "settings": {}, "seed": 0}))
    rows = [
        {"prompt": "a", "chosen": "long answer", "rejected": "short"},
        {"prompt": "b", "chosen": "no", "rejected": "perhaps"},
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = invoke(
        "score", "--model", tmp_path / "model", "--data", tmp_path / "pairs.jsonl", "--out", tmp_path / "s.parquet"
    )
    assert result.exit_code == 0, result.output
    from rm_methods.benchmarks.score_table import read_scores

    assert read_scores(tmp_path / "s.parquet").score.tolist() == [11.0, 5.0, 2.0, 7.0]


def test_evaluating_prints_metrics_that_are_undefined(tmp_path):
    """Three held-out pairs whose chosen response is always the longer one: length cannot be controlled."""
    from rm_methods.benchmarks.item import BenchmarkItem, write_items

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "scorer.json").write_text(json.dumps({"method": "longest", "settings": {}, "seed": 0}))
    prompt = [{"role": "user", "content": "a"}]
    items = [BenchmarkItem(f"i{k}", "test", prompt, ["long answer", "short"], 0) for k in range(3)]
    write_items(items, tmp_path / "i.parquet", ["A remark."])
    files = ("--items", tmp_path / "i.parquet", "--scores", tmp_path / "s.parquet")
    assert invoke("score", "--model", tmp_path / "model", "--data", files[1], "--out", files[3]).exit_code == 0
    result = invoke("evaluate", "--benchmark", "heldout", *files)
    assert result.exit_code == 0, result.output
    assert "100.00%" in result.output
    assert "test_length_controlled       undefined" in result.output
    assert "A remark." in result.output


def test_score_wants_one_out_for_each_data(tmp_path):
    result = invoke("score", "--model", tmp_path, "--data", "a", "--data", "b", "--out", tmp_path / "s.parquet")
    assert result.exit_code == 2
    assert "2 --data but 1 --out" in result.output


@pytest.fixture
def pairs_and_model(tmp_path):
    """A file with two pairs, a repetition and a row that cannot be one; and the scorer whose reward is the length."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "scorer.json").write_text(json.dumps({"method": "longest", "settings": {}, "seed": 0}))
    good, bad = (
        {"prompt": "a", "chosen": "long answer", "rejected": "short"},
        {"prompt": "b", "chosen": "no", "rejected": "perhaps"},
    )
    rows = [good, bad, good, good | {"rejected": ""}]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "--model", tmp_path / "model", "--data", tmp_path / "pairs.jsonl"


def test_scoring_reports_what_was_read_and_how_right_the_scores_are(pairs_and_model, tmp_path):
    result = invoke("score", *pairs_and_model, "--out", tmp_path / "s.csv")
    assert result.exit_code == 0, result.output
    for line in (
        "pairs.jsonl: 2 pairs scored, 1 of 4 rows refused",
        "  accuracy: 50.0%",
        "  rows read           4",
        "1  empty response (row 4)",
        "  merged              1  exact repetitions",
    ):
        assert line in result.output
    report = json.loads((tmp_path / "s.csv.report.json").read_text())
    assert (report["items"], report["repetitions"], report["read"]["rows"]) == (2, 1, 4)
    assert report["read"]["refused"]["empty response"]["count"] == 1


def test_scoring_strictly_fails_on_a_refused_row(pairs_and_model, tmp_path):
    result = invoke("score", *pairs_and_model, "--out", tmp_path / "s.csv", "--strict")
    assert result.exit_code == 2
    assert "1 of 4 rows are refused" in result.output


def test_scoring_reads_as_much_as_the_model_was_made_for(reward_model, tokenizer, pairs_and_model, tmp_path):
    """Without a configuration; a given length and protocol override."""
    folder = tmp_path / "reward_model"
    reward_model.save(folder)
    tokenizer.tokenizer.save_pretrained(folder)
    limit = json.loads((folder / "config.json").read_text())["max_position_embeddings"]
    assert limit != 1024
    data = ("--model", folder, *pairs_and_model[2:], "--threads", "1")
    reads = []
    for given in ((), ("--max-length", "40", "--protocol", "strict")):
        result = invoke("score", *data, "--out", tmp_path / "s.csv", *given)
        assert result.exit_code == 0, result.output
        model = json.loads((tmp_path / "s.csv.report.json").read_text())["model"]
        reads.append((model["max_length"], model["protocol"]))
    assert reads == [(limit, "counted"), (40, "strict")]


def test_scoring_reads_as_much_as_the_experiment_of_the_model_did(reward_model, tokenizer, pairs_and_model, tmp_path):
    """Recorded in the folder, or in the summary beside it; an ensemble has the length of its members."""
    from rm_methods.scoring.model_source import default_length, record_length

    folder = tmp_path / "seed0" / "model"
    reward_model.save(folder)
    tokenizer.tokenizer.save_pretrained(folder)
    limit = json.loads((folder / "config.json").read_text())["max_position_embeddings"]
    assert default_length(folder, 1024) == (limit, "the model's limit")
    (folder.parent / "summary.json").write_text(json.dumps({"run_key": "k", "backbone": {"max_length": 48}}))
    assert default_length(folder, 1024) == (48, "the length of its experiment")
    record_length(folder, 40)
    assert default_length(folder, 1024) == (40, "the length of its experiment")
    ensemble = tmp_path / "ensemble"
    ensemble.mkdir()
    (ensemble / "scorer.json").write_text(json.dumps({"method": "ensemble", "members": ["../seed0/model"]}))
    assert default_length(ensemble, 1024)[0] == 40
    assert default_length(tmp_path / "absent", 1024) == (1024, "the default")
    data = ("--model", folder, *pairs_and_model[2:], "--threads", "1", "--out", tmp_path / "s.csv")
    said = " ".join(invoke("score", *data).output.split())
    assert "max_length 40 (the length of its experiment)" in said
    said = " ".join(invoke("score", *data, "--max-length", "64").output.split())
    assert "max_length 64 (--max-length)" in said


def test_scoring_takes_the_readers_options_of_a_configuration(pairs_and_model, tmp_path):
    model = pairs_and_model[:2]
    row = {"question": "Name a tree.", "better": "An oak.", "worse": "Rock."}
    for name in ("mine.jsonl", "more.jsonl"):
        (tmp_path / name).write_text(json.dumps(row) + "\n")
    columns = {"prompt_field": "question", "chosen_field": "better", "rejected_field": "worse"}
    config = {"experiment": "x", "methods": {"bradley_terry": {}}, "backbone": {"source": "tiny"}}
    config["data"] = {"dataset": str(tmp_path / "mine.jsonl"), "options": columns, "validation_fraction": 0.0}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    given = ("score", *model, "--data", tmp_path / "more.jsonl", "--out", tmp_path / "s.csv")
    result = invoke(*given)
    assert result.exit_code == 2
    assert "name it with --option chosen_field=COLUMN." in result.output
    result = invoke(*given, "--config", tmp_path / "c.yaml")
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "1 pair scored" in said
    assert (
        "The options of the reader are those of --config: prompt_field=question, chosen_field=better, "
        "rejected_field=worse." in said
    )
    result = invoke(*given, "--config", tmp_path / "c.yaml", "--option", "chosen_field=beter")
    assert result.exit_code == 2
    assert "--option chosen_field is 'beter', but no row has that column. Did you mean 'better'?" in result.output


def test_a_missing_file_is_one_line_with_the_nearest_name(pairs_and_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_pairs.jsonl").write_text("{}\n")
    (tmp_path / "my_pairs.yaml").write_text("experiment: x\n")
    for given, says in (
        (("init", "--data", "my_pair.jsonl"), "--data my_pair.jsonl: no such file or folder."),
        (("init", "--data", "my_pairs.jsonl", "--test", "mypairs.jsonl"), "--test mypairs.jsonl: no such file"),
        (("score", *pairs_and_model[:2], "--data", "my_pair.jsonl", "--out", "s.csv"), "--data my_pair.jsonl: no such"),
    ):
        result = invoke(*given)
        assert result.exit_code == 2
        assert result.output.startswith(f"rm-methods: {says}")
        assert result.output.endswith("Did you mean 'my_pairs.jsonl'?\n")
        assert result.output.count("\n") == 1
    result = invoke("check", "--config", "mypairs.yaml")
    assert "cannot be read: No such file or directory. Did you mean 'my_pairs.yaml'?" in result.output
    (tmp_path / "results").mkdir()
    assert "Did you mean 'results'?" in invoke("bundle", "--experiment", "reslts").output


def test_scoring_settings_can_be_given(pairs_and_model, tmp_path, monkeypatch):
    import rm_methods.scoring.score as stage

    monkeypatch.setattr(stage, "score_files", lambda *arguments, **named: [str(asdict(arguments[3]))])
    given = (
        "--layout",
        "plain",
        "--attention",
        "eager",
        "--tokens-per-batch",
        "512",
        "--precision",
        "bf16",
        "--max-length",
        "64",
    )
    result = invoke("score", *pairs_and_model, "--out", tmp_path / "s.csv", *given)
    expected = {
        "layout": "plain",
        "attention": "eager",
        "tokens_per_batch": 512,
        "precision": "bf16",
        "max_length": 64,
        "threads": 0,
    }
    settings = ast.literal_eval(result.output.strip())
    assert {name: settings[name] for name in expected} == expected


def test_preparing_a_benchmark_says_what_it_read(tmp_path):
    from rm_methods.preferences.pair import write_pairs
    from tests.conftest import made_up_pairs

    write_pairs(made_up_pairs(3, split="test"), tmp_path / "pairs.parquet")
    (tmp_path / "c.yaml").write_text(
        "experiment: x\ndata: {dataset: world}\nmethods: {bradley_terry: {}}\nbenchmarks: {heldout: {}}\n"
    )
    files = ("--pairs", tmp_path / "pairs.parquet", "--items", tmp_path / "i.parquet", "--report", tmp_path / "r.json")
    result = invoke("prepare-benchmark", "--config", tmp_path / "c.yaml", "--benchmark", "heldout", *files)
    assert result.exit_code == 0, result.output
    assert "heldout: 3 rows read, 3 items with 6 responses" in result.output
    again = invoke(
        "prepare-benchmark", "--config", tmp_path / "c.yaml", "--benchmark", "heldout", *files[:4], "--report", files[1]
    )
    assert again.exit_code == 2
    assert "--report" in again.output
    assert "the file of --pairs" in again.output


def test_a_summary_that_is_not_a_runs_is_refused(tmp_path):
    for content, problem in (
        ("[]", "not a summary.json of a run: top level: is []; expected a mapping."),
        ('{"variant": "a", "method": "b", "seed": 0}', "missing run_key"),
        ('{"variant": "a", "method": "b", "seed": "x", "run_key": NaN}', "NaN is not a finite number"),
    ):
        (tmp_path / "summary.json").write_text(content)
        arguments = (
            "--benchmark",
            "heldout",
            "--items",
            tmp_path / "i",
            "--scores",
            tmp_path / "s",
            "--summary",
            tmp_path / "summary.json",
        )
        result = invoke("evaluate", *arguments)
        assert result.exit_code == 2
        assert problem in result.output


def test_a_full_disk_is_reported_in_words(tmp_path, monkeypatch):
    import rm_methods.listing

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "x.parquet")

    monkeypatch.setattr(rm_methods.listing, "listing", full)
    result = invoke("list", "methods")
    assert result.exit_code == 2
    assert "the disk is full or over its quota while writing to x.parquet" in result.output


def test_a_missing_file_is_named_with_what_to_do(tmp_path, monkeypatch):
    import rm_methods.listing

    monkeypatch.setattr(rm_methods.listing, "listing", lambda _: (tmp_path / "p.parquet").open())
    result = invoke("list", "methods")
    assert result.exit_code == 2
    assert result.output == f"rm-methods: {tmp_path}/p.parquet: No such file or directory. Check the path.\n"


def test_a_read_error_does_not_speak_of_writing(tmp_path, monkeypatch):
    import rm_methods.listing

    def broken(*_):
        raise OSError(errno.EIO, "Input/output error", "x.parquet")

    for fail, advice in ((lambda _: tmp_path.open(), "Name a file in that folder."), (broken, "Check the path")):
        monkeypatch.setattr(rm_methods.listing, "listing", fail)
        result = invoke("list", "methods")
        assert result.exit_code == 2
        assert "half-written" not in result.output
        assert advice in result.output


def test_missing_items_and_pairs_name_the_verb_that_makes_them(tmp_path):
    files = ("--items", tmp_path / "i.parquet", "--scores", tmp_path / "s.parquet")
    assert "Run the prepare-benchmark stage first" in invoke("evaluate", "--benchmark", "world", *files).output
    config = REPOSITORY / "config" / "quickstart.yaml"
    outputs = ("--items", tmp_path / "i.parquet", "--report", tmp_path / "r.json")
    made = invoke("prepare-benchmark", "--config", config, "--benchmark", "world", *outputs)
    assert "`rm-methods prepare-benchmark --pairs`" in made.output


@pytest.mark.parametrize("option", ["--config", "--pairs", "--out", "--work"])
@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("", "the path is empty."),
        (" ", "the path is empty."),
        ("a\udcff", r"'a\udcff' has bytes that are not UTF-8"),
    ],
)
def test_a_path_that_is_empty_or_not_text_is_refused_by_its_option(option, value, problem):
    arguments = {"--config": "c.yaml", "--pairs": "p.parquet", "--out": "out", "--work": "work"} | {option: value}
    result = CliRunner().invoke(main, ["sft", *(word for entry in arguments.items() for word in entry)])
    assert result.exit_code == 2
    assert f"Invalid value for '{option}': {problem}" in " ".join(result.output.split())


def test_a_seed_that_numpy_cannot_take_is_refused_before_anything_is_read(tmp_path):
    files = ("--pairs", "p", "--backbone", "b", "--out", "o", "--work", "w")
    result = invoke("train", "--config", tmp_path / "absent.yaml", "--variant", "v", "--seed", 2**32, *files)
    assert result.exit_code == 2
    assert "4294967296 is not in the range 0<=x<=4294967295" in result.output


def test_a_training_says_what_was_cut_and_dropped():
    from rm_methods.listing import training_text

    summary = {"variant": "bt", "seed": 3, "data": {"pairs": 1200}}
    assert training_text(summary) == "bt seed 3: 1,200 training pairs"
    summary["data"] |= {"pairs_offered": 1200, "pairs_used": 1200}
    assert training_text(summary) == "bt seed 3: training pairs used: 1,200 of 1,200"
    summary["data"]["pairs_used"] = 1196
    summary["truncation"] = {
        "prompts_cut": 12, "responses_cut": 7, "dropped_response_cut": 2, "dropped_equal": 1, "dropped_refused": 1,
    }  # fmt: skip
    summary["training"] = {"max_length": None}
    summary["backbone"] = {"max_length": 128}
    assert training_text(summary) == (
        "bt seed 3: training pairs used: 1,196 of 1,200; 3 left out because a response does not fit into 128 tokens; "
        "1 left out because of the chat template; 5 with a response cut at its end; 12 with a prompt cut at its start"
    )
    summary["data"]["pairs_used"] = 1000
    assert training_text(summary).startswith("WARNING: bt seed 3")
