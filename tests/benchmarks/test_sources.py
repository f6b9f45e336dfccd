from __future__ import annotations

import gzip
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from huggingface_hub import close_session

from rm_methods.benchmarks import rm_bench, sources
from rm_methods.benchmarks.evaluation import prepare_items
from rm_methods.benchmarks.item import read_items
from rm_methods.cli import main
from rm_methods.errors import DataError
from rm_methods.listing import preparation_text
from rm_methods.preferences.file_formats import file_rows

from .conftest import EXAMPLES


def prepare(name, config, tmp_path):
    report = prepare_items(name, config, None, tmp_path / "i.parquet", tmp_path / "r.json")
    return report, read_items(tmp_path / "i.parquet")


class TestLocal:
    def test_a_missing_folder_names_the_key_of_the_configuration(self, tmp_path):
        with pytest.raises(DataError, match=r"benchmarks.rm_bench.root: .*nowhere: no such folder"):
            prepare("rm_bench", {"root": str(tmp_path / "nowhere")}, tmp_path)

    def test_a_folder_without_the_files_says_what_was_expected_and_found(self, tmp_path):
        (tmp_path / "readme.txt").write_text("hello")
        with pytest.raises(DataError, match=r"no file .*chat_filtered.json\*.* is here. Found: readme.txt"):
            prepare("rm_bench", {"root": str(tmp_path)}, tmp_path)

    def test_two_copies_of_a_file_are_not_read_twice(self, tmp_path):
        text = (EXAMPLES / "rm_bench" / "chat_filtered.jsonl").read_bytes()
        (tmp_path / "chat_filtered.jsonl").write_bytes(text)
        (tmp_path / "chat_filtered.jsonl.gz").write_bytes(gzip.compress(text))
        with pytest.raises(DataError, match=r"matches 2 files \(chat_filtered.jsonl, chat_filtered.jsonl.gz\)"):
            prepare("rm_bench", {"root": str(tmp_path)}, tmp_path)

    def test_the_parts_of_a_file_are_read_together(self, tmp_path):
        (whole,) = (EXAMPLES / "ppe_correctness").glob("*MATH*/data/*.parquet")
        table, folder = pq.read_table(whole), tmp_path / "in" / "PPE-MATH-Best-of-K"
        folder.mkdir(parents=True)
        pq.write_table(table.slice(0, 1), folder / "train-00000-of-00002.parquet")
        with pytest.raises(DataError, match="not the parts 0 to 1 of one file"):
            prepare("ppe_correctness", {"root": tmp_path / "in"}, tmp_path)
        pq.write_table(table.slice(1), folder / "train-00001-of-00002.parquet")
        report, items = prepare("ppe_correctness", {"root": tmp_path / "in"}, tmp_path)
        assert (report["n_rows"], len(report["sources"])) == (len(table), 2)
        _, expected = prepare(
            "ppe_correctness", {"root": whole.parents[2], "options": {"benchmarks": ["math"]}}, tmp_path
        )
        assert items == expected
        (folder / "copy.parquet").write_bytes(whole.read_bytes())
        with pytest.raises(DataError, match="nothing beside them"):
            prepare("ppe_correctness", {"root": tmp_path / "in"}, tmp_path)

    def test_a_compressed_file_gives_the_same_items(self, tmp_path):
        text = (EXAMPLES / "rm_bench" / "chat_filtered.jsonl").read_bytes()
        for folder, name, content in (
            ("a", "chat_filtered.jsonl", text),
            ("b", "chat_filtered.jsonl.gz", gzip.compress(text)),
        ):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / name).write_bytes(content)
        assert (
            prepare("rm_bench", {"root": tmp_path / "a"}, tmp_path)[1]
            == prepare("rm_bench", {"root": tmp_path / "b"}, tmp_path)[1]
        )

    def test_a_damaged_file_and_a_bad_line_are_named(self, tmp_path):
        whole = gzip.compress((EXAMPLES / "rm_bench" / "chat_filtered.jsonl").read_bytes())
        (tmp_path / "chat_filtered.jsonl.gz").write_bytes(whole[:-20])
        with pytest.raises(DataError, match=r"chat_filtered.jsonl.gz"):
            prepare("rm_bench", {"root": str(tmp_path)}, tmp_path)
        (tmp_path / "chat_filtered.jsonl.gz").write_bytes(gzip.compress(b'{"id": 1,\n'))
        with pytest.raises(DataError, match=r"chat_filtered.jsonl.gz, row 1: not valid JSON"):
            prepare("rm_bench", {"root": str(tmp_path)}, tmp_path)

    def test_text_that_is_not_unicode_is_named(self, tmp_path):
        row = '{"id": 1, "prompt": "?", "chosen": ["\\ud800", "b", "c"], "rejected": ["d", "e", "f"]}'
        (tmp_path / "chat_filtered.jsonl").write_text(row)
        with pytest.raises(DataError, match=r"chat_filtered.jsonl, row 1: text is not Unicode"):
            prepare("rm_bench", {"root": str(tmp_path)}, tmp_path)

    def test_an_empty_file_is_an_error(self, tmp_path):
        (tmp_path / "chat_filtered.jsonl").write_text("")
        with pytest.raises(DataError, match="rm_bench: no items"):
            prepare("rm_bench", {"root": str(tmp_path)}, tmp_path)
        assert not (tmp_path / "i.parquet").exists()


FILES = {
    "alpaca_eval_pool": "*",
    "auto_j": "data/test/*",
    "helpsteer3": "preference/*",
    "hh_rlhf": "harmless-base/*",
    "judge_bench": "*gpt-4o*",
    "llmbar": "Dataset/LLMBar/Natural/*",
    "ppe_correctness": "*MATH*/data/*",
    "rm_bench": "chat_filtered*",
    "tldr": "comparisons/batch11*",
    "ultrafeedback": "data/*",
}


@pytest.fixture
def change(tmp_path):
    """A copy of a benchmark's example files in which a function has changed the rows of one file."""

    def copy(name, edit):
        folder = tmp_path / "changed"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(EXAMPLES / name, folder)
        (path,) = [path for path in folder.glob(FILES[name]) if path.is_file()]
        rows = [row for _, row in file_rows(path)]
        edit(rows)
        if path.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        else:
            text = "".join(json.dumps(row) + "\n" for row in rows).encode()
            path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
        return {"root": str(folder)}

    return copy


def put(key, value):
    def edit(rows):
        rows[1][key] = value

    return edit


def repeat_the_first(rows):
    rows.append(rows[0])


def without(key):
    def edit(rows):
        for row in rows:
            del row[key]

    return edit


CONVERSATION = "[{'role': 'user', 'content': 'Why?'}]"
REFUSED = [
    ("rm_bench", put("id", None), "row 2: `id` must be a text or a whole number, found None"),
    ("rm_bench", put("id", True), "row 2: `id` must be a text or a whole number, found True"),
    ("rm_bench", put("id", "\udc00"), "row 2: text is not Unicode"),
    ("rm_bench", put("prompt", " "), "row 2: `prompt` must be a text that is not empty"),
    ("rm_bench", put("prompt", CONVERSATION), "row 2: `prompt` is a conversation stored as text"),
    ("rm_bench", put("chosen", ["a", "b", CONVERSATION]), "row 2: `chosen` is a conversation stored as text"),
    ("rm_bench", put("chosen", ["a", "b"]), "row 2: `chosen` must be a list of three texts"),
    ("rm_bench", put("chosen", []), "row 2: `chosen` must be a list of three texts"),
    ("rm_bench", repeat_the_first, r"row \d+: item id 'chat/.*' occurs twice, first in .*row 1\. Ids must be unique"),
    ("judge_bench", repeat_the_first, r"row \d+: item id '.*' occurs twice, first in .*row 1\."),
    ("judge_bench", put("label", "A=B"), r"row 2: label 'A=B' is not allowed"),
    ("judge_bench", put("pair_id", ""), "row 2: `pair_id` must be a text that is not empty"),
    ("judge_bench", put("question", "\ud800"), "row 2: text is not Unicode"),
    ("judge_bench", put("response_A", CONVERSATION[:-1]), "row 2: `response_A` begins as a list of messages"),
    ("alpaca_eval_pool", repeat_the_first, r"row \d+: item id '.*' occurs twice, first in .*row 1\."),
    ("alpaca_eval_pool", put("candidates", []), "row 2: `candidates` must be a list of at least two answers"),
    ("alpaca_eval_pool", put("instruction", ""), "row 2: `instruction` must be a text that is not empty"),
    ("ppe_correctness", without("question_id"), "row 1: `question_id` must be a text or a whole number, found None"),
    ("ppe_correctness", without("model_name"), "row 1: `model_name` must be a text or a whole number, found None"),
    ("hh_rlhf", put("chosen", None), "row 2: `chosen` must be a text, found null"),
    ("hh_rlhf", put("chosen", CONVERSATION), "row 2: `chosen` is a conversation stored as text"),
]


@pytest.mark.parametrize(("name", "edit", "expected"), REFUSED, ids=range(len(REFUSED)))
def test_a_row_that_cannot_be_trusted_is_named(change, tmp_path, name, edit, expected):
    with pytest.raises(DataError, match=expected):
        prepare(name, change(name, edit), tmp_path)
    assert not (tmp_path / "i.parquet").exists()


def test_unusual_answers_are_counted(change, tmp_path):
    def edit(rows):
        rows[0]["chosen"][0] = ""
        rows[1]["chosen"][2] = rows[1]["rejected"][0]

    counted = prepare("rm_bench", change("rm_bench", edit), tmp_path)[0]["counted"]
    assert counted["some answers are empty, kept"]["count"] == 1
    assert counted["a chosen and a rejected answer are the same text: always a tie, kept"]["count"] == 1
    counted = prepare("judge_bench", change("judge_bench", put("response_A", "")), tmp_path)[0]["counted"]
    assert counted["empty answer, kept"]["count"] == 1


@pytest.mark.parametrize("name", FILES)
def test_columns_that_were_not_read_are_reported(change, tmp_path, name):
    def edit(rows):
        for number, row in enumerate(rows):
            row["system prompt"] = "Be brief." if number == 0 else None

    report, _ = prepare(name, change(name, edit), tmp_path)
    assert [columns["system prompt"] for columns in report["unread"].values() if "system prompt" in columns] == [1]
    assert "system prompt (1 rows)" in preparation_text(report)


@pytest.mark.parametrize("pair", [[0, 99], [True, False], [0, -1], [0]])
def test_conflict_pairs_are_two_indices_of_responses(change, tmp_path, pair):
    def edit(rows):
        for row in rows:
            row["sampled_conflict_pairs"] = [pair]

    with pytest.raises(DataError, match=r"row 1: conflict pair .* is not two indices"):
        prepare("ppe_correctness", change("ppe_correctness", edit), tmp_path)


def test_a_file_without_a_usable_row_says_what_became_of_its_rows(change, tmp_path):
    def edit(rows):
        rows[:] = [{"chosen": "no transcript", "rejected": "none"}]

    config = change("hh_rlhf", edit) | {"options": {"subsets": ["harmless-base"]}}
    expected = (
        r"no items to evaluate\. 1 rows were read from .*harmless-base.*1 excluded: not a transcript \(such as .*row 1"
    )
    with pytest.raises(DataError, match=expected):
        prepare("hh_rlhf", config, tmp_path)


def test_a_module_that_drops_rows_in_silence_is_found_out(monkeypatch, tmp_path):
    read = rm_bench.read
    monkeypatch.setattr(rm_bench, "read", lambda *arguments, **more: list(read(*arguments, **more))[1:])
    with pytest.raises(DataError, match="7 rows gave 6 items and 0 exclusions: rows are not accounted for"):
        prepare("rm_bench", {"root": str(EXAMPLES / "rm_bench")}, tmp_path)


class TestHub:
    """Without a network: what is asked of `load_dataset`, and what a user is told when it fails."""

    @pytest.fixture
    def hub(self, monkeypatch):
        asked = []

        def load_dataset(path, **arguments):
            asked.append((path, arguments))
            return self.answer

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        monkeypatch.setattr(sources, "hub_problem", lambda: None)
        return asked

    def test_rm_bench_is_one_split_with_domains(self, hub, tmp_path):
        self.answer = [
            {"id": 1, "domain": "math", "prompt": "?", "chosen": list("abc"), "rejected": list("def"), "subset": None}
        ]
        report, items = prepare("rm_bench", {}, tmp_path)
        assert hub == [("THU-KEG/RM-Bench", {"revision": None, "split": "train"})]
        assert items[0].item_id == "math/1"
        assert any(note.startswith("Not pinned") for note in report["notes"])

    def test_judge_bench_splits_by_response_model(self, hub, tmp_path):
        row = {
            "pair_id": "p",
            "source": "livecodebench",
            "question": "?",
            "response_A": "a",
            "response_B": "b",
            "label": "A>B",
        }
        self.answer = [row]
        prepare("judge_bench", {"root": None, "options": {"response_model": "claude"}}, tmp_path)
        assert hub == [("ScalerLab/JudgeBench", {"revision": None, "split": "claude"})]

    def test_hh_rlhf_has_a_folder_a_tranche_at_a_pinned_revision(self, hub, tmp_path):
        self.answer = [{"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: Go"}]
        report, items = prepare("hh_rlhf", {}, tmp_path)
        assert [arguments["data_dir"] for _, arguments in hub] == [
            "harmless-base",
            "helpful-base",
            "helpful-online",
            "helpful-rejection-sampled",
        ]
        assert {(arguments["revision"], arguments["split"]) for _, arguments in hub} == {
            ("09be8c5bbc57cb3887f3a9732ad6aa7ec602a1fa", "test")
        }
        assert len(items) == 4
        size = "Expected 2,312 rows, got 1: harmless-base 1 of 2,312."
        assert report["notes"] == [f"{size} Figures are not the official ones."]

    def test_helpsteer3_is_the_preference_configuration_at_a_pinned_revision(self, hub, tmp_path):
        turn = {"role": "user", "content": "?"}
        row = {"domain": "code", "context": [turn], "response1": "a", "response2": "b", "overall_preference": -2}
        self.answer = [row]
        report, items = prepare("helpsteer3", {}, tmp_path)
        revision = "f6d145777bcbde96137596340fab89793acd1031"
        assert hub == [("nvidia/HelpSteer3", {"revision": revision, "name": "preference", "split": "validation"})]
        assert (items[0].label, report["notes"]) == (0, [])

    def test_ultrafeedback_is_the_split_test_prefs(self, hub, tmp_path):
        sides = [[{"role": "user", "content": "?"}, {"role": "assistant", "content": text}] for text in ("a", "b")]
        scores = {"score_chosen": 2.0, "score_rejected": 1.0}
        self.answer = [{"prompt_id": "p", "chosen": sides[0], "rejected": sides[1], **scores}]
        prepare("ultrafeedback", {}, tmp_path)
        revision = "3949bf5f8c17c394422ccfab0c31ea9c20bdeb85"
        assert hub == [("HuggingFaceH4/ultrafeedback_binarized", {"revision": revision, "split": "test_prefs"})]

    def test_tldr_reads_the_converted_validation_split_and_says_that_it_is_not_pinned(self, hub, tmp_path):
        info = {"id": "x", "post": "p", "title": "t", "subreddit": "s", "site": None, "article": None}
        summaries = [{"text": text, "policy": "ref", "note": None} for text in (" a", " b")]
        self.answer = [{"info": info, "summaries": summaries, "choice": 1, "batch": "batch11", "split": "valid2"}]
        report, items = prepare("tldr", {}, tmp_path)
        ((path, arguments),) = hub
        assert path == "openai/summarize_from_feedback"
        assert arguments == {
            "revision": "refs/convert/parquet",
            "data_files": {"validation": "comparisons/validation/*.parquet"},
            "split": "validation",
        }
        assert items[0].label == 1
        assert report["sources"] == [{"hub": path} | arguments]
        assert report["notes"][0].startswith("Not pinned")

    def test_a_hub_out_of_reach_says_how_to_use_local_files(self, tmp_path):
        code = (
            "from pathlib import Path\n"
            "from rm_methods.errors import DataError\n"
            "from rm_methods.benchmarks.evaluation import prepare_items\n"
            "try: prepare_items('judge_bench', {}, None, Path('i.parquet'), Path('r.json'))\n"
            "except DataError as error: print(error)"
        )
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
        run = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment, check=True
        )
        assert "could not be loaded: offline mode is on (HF_HUB_OFFLINE)" in run.stdout
        assert "benchmarks:\n      judge_bench:\n        root: /folder/with/the/files" in run.stdout
        assert not (tmp_path / "i.parquet").exists()

    @pytest.fixture
    def no_network(self, monkeypatch, tmp_path):
        """Names of hosts that were looked up, in vain. Nothing is in the cache, and waiting is an error."""
        from huggingface_hub import constants

        asked = []

        def getaddrinfo(host, *arguments, **more):
            asked.append(host)
            raise socket.gaierror(-2, "Name or service not known")

        def sleep(seconds):
            raise AssertionError(f"waits {seconds} s for another try")

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        monkeypatch.setattr(time, "sleep", sleep)
        for settings in (constants, datasets.config):
            monkeypatch.setattr(settings, "HF_HUB_OFFLINE", False)
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
        close_session()  # an earlier test may have left a connection open
        return asked

    @pytest.mark.parametrize("benchmark", ["rewardbench", "hh_rlhf", "tldr", "ppe_correctness"])
    def test_without_a_network_one_request_is_made_and_one_message_is_given(self, no_network, benchmark, tmp_path):
        from huggingface_hub import constants

        with pytest.raises(DataError) as error:
            prepare(benchmark, {}, tmp_path)
        assert len(no_network) == 1
        text = str(error.value)
        assert "cannot be reached ([Errno -2] Name or service not known), and its local cache does not hold" in text
        assert f"--root {benchmark}=/folder/with/the/files" in text
        assert text.count("cannot be reached") == 1
        assert not constants.HF_HUB_OFFLINE
        assert not datasets.config.HF_HUB_OFFLINE

    def test_without_a_network_the_verb_ends_with_the_message_alone(self, no_network, tmp_path):
        config = "experiment: x\ndata: {dataset: world}\nmethods: {longest: {}}\nbenchmarks: {rewardbench2: {}}\n"
        (tmp_path / "c.yaml").write_text(config)
        files = ["--items", str(tmp_path / "i.parquet"), "--report", str(tmp_path / "r.json")]
        command = ["prepare-benchmark", "--config", str(tmp_path / "c.yaml"), "--benchmark", "rewardbench2", *files]
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 2
        assert result.output.count("\n") == 5, result.output
        assert result.output.startswith("rm-methods: Benchmark 'rewardbench2': allenai/reward-bench-2")

    def test_without_a_network_the_cache_is_used_and_the_report_says_so(self, no_network, hub, monkeypatch, tmp_path):
        monkeypatch.setattr(sources, "hub_problem", lambda: "the hub cannot be reached")
        self.answer = [
            {"id": 1, "domain": "math", "prompt": "?", "chosen": list("abc"), "rejected": list("def"), "subset": None}
        ]
        report, items = prepare("rm_bench", {}, tmp_path)
        assert len(items) == 1
        assert "From the local cache: the hub cannot be reached." in report["notes"]

    @pytest.mark.parametrize("status", [200, 404, 503])
    def test_a_hub_that_answers_at_all_is_reachable(self, monkeypatch, status):
        import huggingface_hub

        asked = []
        session = SimpleNamespace(head=lambda url, timeout: asked.append((url, timeout)) or status)
        monkeypatch.setattr(huggingface_hub, "get_session", lambda: session)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        assert sources.hub_problem() is None
        assert asked == [(huggingface_hub.constants.ENDPOINT, sources.HUB_PATIENCE)]
