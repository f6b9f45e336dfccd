"""Bundles: what is in them, what is not, and that each change is noticed and named."""

import hashlib
import json
import shutil
import zipfile
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from rm_methods.benchmarks.item import mask_items, read_items, write_items
from rm_methods.benchmarks.items_hash import items_hash
from rm_methods.bundle.archive import MANIFEST, may_be_passed_on, read_bundle, write_bundle
from rm_methods.bundle.verify import verify
from rm_methods.cli import main
from rm_methods.config.resolve import load_config, write_resolved
from rm_methods.errors import DataError, UserError
from rm_methods.files import file_hash
from rm_methods.yaml_files import yaml_text
from tests.fuzz.study import text_rows, write_rows

pytestmark = pytest.mark.process


def run_verb(*arguments):
    done = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished experiment of scorers without weights, on held-out pairs of unknown license."""
    folder = tmp_path_factory.mktemp("bundle")
    write_rows(text_rows(), folder / "pairs.jsonl")
    config_file = folder / "config.yaml"
    settings = {
        "experiment": "study",
        "results": str(folder / "results"),
        "seeds": [0, 1],
        "data": {"dataset": str(folder / "pairs.jsonl"), "validation_fraction": 0.1, "test_fraction": 0.4},
        "methods": {"longest": {}, "shortest": {}, "random": {}},
        "benchmarks": {"heldout": {}},
    }
    config_file.write_text(yaml_text(settings))
    config = load_config([config_file])
    results = write_resolved(config).parents[1]
    given = ("--config", config_file)
    pairs = results / "data" / "pairs.parquet"
    items = results / "benchmarks" / "heldout.parquet"
    run_verb("prepare", *given, "--pairs", pairs, "--report", results / "data" / "report.json")
    items_report = results / "benchmarks" / "heldout.json"
    run_verb("prepare-benchmark", *given, "--benchmark", "heldout", "--pairs", pairs, "--items", items,
             "--report", items_report)  # fmt: skip
    overlap = results / "benchmarks" / "heldout.contamination.json"
    run_verb("contamination", "--benchmark", "heldout", "--pairs", pairs, "--items", items, "--report", overlap)
    runs = [("longest", 0), ("shortest", 0), ("random", 0), ("random", 1)]
    for variant, seed in runs:
        run = results / "runs" / variant / f"seed{seed}"
        scores = results / "scores" / variant / f"seed{seed}" / "heldout.parquet"
        evaluation = results / "evaluation" / variant / f"seed{seed}"
        run_verb("train", *given, "--variant", variant, "--seed", seed, "--pairs", pairs, "--backbone", folder,
                 "--out", run, "--work", folder / "work")  # fmt: skip
        run_verb("score", "--model", run / "model", "--data", items, "--out", scores)
        run_verb("evaluate", "--benchmark", "heldout", "--items", items, "--scores", scores,
                 "--summary", run / "summary.json", "--metrics", evaluation / "metrics.json",
                 "--credits", evaluation / "credits.parquet")  # fmt: skip
    run_verb("compare", *given, "--experiment", results, "--out", results / "comparison")
    run_verb("report", *given, "--experiment", results)
    return results


@pytest.fixture
def packed(finished, tmp_path):
    path = tmp_path / "study.zip"
    return path, write_bundle(finished, path)


def rewritten(path, target, change):
    """A copy of a bundle whose files `change` (a dict name -> content) was applied to."""
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    change(contents)
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return target


def with_new_digests(contents):
    """Make the manifest fit the contents, as somebody would who hides a change."""
    manifest = json.loads(contents[MANIFEST])
    manifest["files"] = {
        name: hashlib.sha256(content).hexdigest() for name, content in contents.items() if name != MANIFEST
    }
    contents[MANIFEST] = json.dumps(manifest).encode()


def with_scores(content, scores_of, scratch):
    """A file of scores, as bytes, whose list of scores `scores_of` was applied to."""
    scratch.write_bytes(content)
    table = pq.read_table(scratch)
    position = table.schema.get_field_index("score")
    field = table.schema.field("score")
    scores = scores_of(table["score"].to_pylist())
    pq.write_table(table.set_column(position, field, pa.array(scores, field.type)), scratch)
    return scratch.read_bytes()


def test_a_bundle_verifies_and_has_no_weights_no_pairs_and_no_texts(packed):
    path, manifest = packed
    result = verify(path)
    assert result.differences == ()
    assert result.evaluations == 4
    assert result.files >= 8
    assert "OK: all are equal." in result.text
    names = set(manifest.files)
    assert {"report.html", "constraints.txt", "comparison/table.csv", "runs/random/seed1/summary.json"} <= names
    assert not [name for name in names if "pairs.parquet" in name or "model/" in name or "safetensors" in name]
    reports = {"benchmarks/heldout.json", "benchmarks/heldout.contamination.json", "data/report.json"}
    assert set(manifest.masked) == {"benchmarks/heldout.parquet", *reports}
    everything = b"".join(zipfile.ZipFile(path).read(name) for name in names if not name.endswith(".parquet"))
    for row in text_rows():
        assert row["chosen"].encode() not in everything


def test_masked_items_keep_lengths_and_give_the_same_metrics(finished, tmp_path):
    source = finished / "benchmarks" / "heldout.parquet"
    mask_items(source, tmp_path / "masked.parquet")
    for item, masked in zip(read_items(source), read_items(tmp_path / "masked.parquet"), strict=True):
        assert [len(text) for text in masked.responses] == [len(text) for text in item.responses]
        assert set("".join(masked.responses)) == {"x"}
        assert (masked.item_id, masked.label, masked.group) == (item.item_id, item.label, item.group)
    assert items_hash(tmp_path / "masked.parquet") == items_hash(source) == file_hash(source)
    # Masked twice, it is still the file of the original.
    mask_items(tmp_path / "masked.parquet", tmp_path / "again.parquet")
    assert items_hash(tmp_path / "again.parquet") == file_hash(source)


def test_masked_items_keep_the_name_of_their_source(finished, tmp_path):
    """Metrics by source read it, however long it is; longer texts of `meta` are left out."""
    meta = {"source": "data/" + "n" * 60, "comment": "c" * 60}
    items = [replace(item, meta=meta) for item in read_items(finished / "benchmarks" / "heldout.parquet")]
    write_items(items, tmp_path / "items.parquet")
    mask_items(tmp_path / "items.parquet", tmp_path / "masked.parquet")
    for masked in read_items(tmp_path / "masked.parquet"):
        assert masked.meta["source"] == meta["source"]
        assert masked.meta["comment"] == ""


def test_the_same_results_give_the_same_bytes(finished, packed, tmp_path):
    write_bundle(finished, tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == packed[0].read_bytes()


@pytest.mark.parametrize("name", ["comparison/table.csv", "runs/longest/seed0/summary.json", "report.html"])
def test_a_changed_file_is_named(packed, tmp_path, name):
    changed = rewritten(packed[0], tmp_path / "changed.zip", lambda contents: contents.update({name: b"other"}))
    with pytest.raises(DataError, match=f"1 of .* files were changed .*: {name}"):
        verify(changed)


def test_missing_and_added_files_are_named(packed, tmp_path):
    missing = rewritten(packed[0], tmp_path / "missing.zip", lambda contents: contents.pop("comparison/table.csv"))
    with pytest.raises(DataError, match=r"are missing: comparison/table\.csv"):
        verify(missing)
    added = rewritten(packed[0], tmp_path / "added.zip", lambda contents: contents.update({"more.txt": b"x"}))
    with pytest.raises(DataError, match=r"not in its list: more\.txt"):
        verify(added)


def test_a_configuration_outside_the_list_of_files_is_refused(packed, tmp_path):
    path, _ = packed
    outside = tmp_path / "outside.yaml"
    with zipfile.ZipFile(path) as archive:
        (name,) = [name for name in archive.namelist() if name.startswith("config/")]
        outside.write_bytes(archive.read(name))

    def change(contents):
        contents[MANIFEST] = json.dumps(json.loads(contents[MANIFEST]) | {"configuration": str(outside)}).encode()

    with pytest.raises(DataError, match=r"bundle\.json is damaged .*configuration .*outside\.yaml"):
        read_bundle(rewritten(path, tmp_path / "changed.zip", change), tmp_path / "target")


def test_a_file_that_occurs_twice_is_named(packed, tmp_path):
    doubled = shutil.copy(packed[0], tmp_path / "doubled.zip")
    with zipfile.ZipFile(doubled, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("comparison/table.csv", b"other")
    with pytest.raises(DataError, match=r"files occur twice: comparison/table\.csv"):
        verify(doubled)


def test_a_number_that_was_changed_with_its_checksum_is_named(packed, tmp_path):
    def change(contents):
        table = contents["comparison/table.csv"].decode().splitlines()
        header = table[0].split(",")
        row = table[1].split(",")
        row[header.index("mean")] = "0.999"
        contents["comparison/table.csv"] = "\n".join([table[0], ",".join(row), *table[2:]]).encode()
        with_new_digests(contents)

    result = verify(rewritten(packed[0], tmp_path / "changed.zip", change))
    (difference,) = result.differences
    assert "comparison/table.csv, row 1 (longest, heldout" in difference
    assert "mean is 0.999, computed again it is" in difference


def test_a_score_that_was_changed_changes_a_metric_by_name(packed, tmp_path):
    name = "scores/longest/seed0/heldout.parquet"

    def change(contents):
        negated = with_scores(contents[name], lambda scores: [-value for value in scores], tmp_path / "scores.parquet")
        contents[name] = negated
        with_new_digests(contents)

    result = verify(rewritten(packed[0], tmp_path / "changed.zip", change))
    assert any(text.startswith("longest seed 0, heldout: ") for text in result.differences), result.differences


def test_files_outside_the_folder_are_refused_before_anything_is_unpacked(packed, tmp_path):
    def change(contents):
        contents["../outside.txt"] = b"x"
        with_new_digests(contents)

    with pytest.raises(DataError, match="outside its folder"):
        read_bundle(rewritten(packed[0], tmp_path / "bad.zip", change), tmp_path / "target" / "inner")
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04 cut"])
def test_a_file_that_is_no_zip_is_refused(tmp_path, content):
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(DataError, match="damaged or no zip file"):
        verify(tmp_path / "x.zip")


def test_other_archives_and_newer_formats_are_refused(packed, tmp_path):
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a.txt", "a")
    with pytest.raises(UserError, match="is not a bundle"):
        verify(tmp_path / "other.zip")

    def newer(contents):
        contents[MANIFEST] = json.dumps(json.loads(contents[MANIFEST]) | {"format": 99}).encode()

    with pytest.raises(UserError, match="has format 99"):
        verify(rewritten(packed[0], tmp_path / "newer.zip", newer))
    with pytest.raises(UserError, match="no such file"):
        verify(tmp_path / "nothing.zip")


def test_an_unfinished_experiment_is_refused(finished, tmp_path):
    copied = tmp_path / "results" / "study"
    shutil.copytree(finished, copied)
    shutil.rmtree(copied / "evaluation" / "random")
    with pytest.raises(DataError, match="is missing"):
        write_bundle(copied, tmp_path / "x.zip")


def test_the_verbs(finished, packed, tmp_path):
    out = tmp_path / "made.zip"
    output = run_verb("bundle", "--experiment", finished, "--out", out)
    assert output.startswith(f"{out}: ")
    assert "Without the texts of benchmarks/heldout.parquet: license " in output
    assert "OK: all are equal." in run_verb("verify", out)
    done = CliRunner().invoke(main, ["bundle", "--experiment", str(finished), "--out", str(tmp_path / "x.tar")])
    assert done.exit_code == 2
    assert "a bundle is a zip file" in done.output


@pytest.mark.parametrize(
    ("license_text", "allowed"),
    [
        ("Apache-2.0 (generated by this repository)", True),
        ("MIT", True),
        ("CC-BY-4.0", True),
        ("CC BY-NC 4.0 (data)", False),
        ("MIT (hub card); the terms of the answering models apply too", False),
        ("ODC-BY; parts have licenses of their sources", False),
        ("none stated (GitHub repository)", False),
        ("Limited use; ask", False),
        ("", False),
    ],
)
def test_which_licenses_let_texts_pass(license_text, allowed):
    assert may_be_passed_on(license_text) is allowed


def test_compare_takes_bundles_like_folders(finished, packed, tmp_path):
    copied = tmp_path / "results" / "other"
    shutil.copytree(finished, copied)
    for path in (copied / "config").glob("*.yaml"):
        path.write_text(path.read_text().replace("experiment: study", "experiment: other"))
    output = run_verb("compare", packed[0], copied, "--out", tmp_path / "out", "--reference", "random")
    assert "Equal runs" in output
    assert (tmp_path / "out" / "table.csv").exists()
    done = CliRunner().invoke(main, ["compare", str(tmp_path / "no.zip"), str(copied)])
    assert (done.exit_code, "holds no finished experiment" in done.output) == (2, True)


def test_bytes_that_do_not_unpack_name_their_file(packed, tmp_path):
    content = bytearray(packed[0].read_bytes())
    start = content.index(b"comparison/table.csv") + len("comparison/table.csv")
    content[start : start + 40] = bytes(40)
    (tmp_path / "bad.zip").write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"were changed .*: comparison/table\.csv"):
        verify(tmp_path / "bad.zip")


@pytest.mark.parametrize(
    ("licenses", "withheld"),
    [(["MIT", "Apache-2.0"], False), (["Apache-2.0", "not stated"], True), (["MIT", "CC BY-NC 4.0"], True)],
)
def test_texts_of_a_mixture_pass_only_if_every_source_allows_it(finished, tmp_path, licenses, withheld):
    copied = tmp_path / "results" / "study"
    shutil.copytree(finished, copied)
    path = copied / "data" / "report.json"
    report = json.loads(path.read_text())
    report["dataset"]["license"] = "; ".join(licenses)
    report["sources"] = [{"name": str(number), "license": text} for number, text in enumerate(licenses)]
    path.write_text(json.dumps(report))
    manifest = write_bundle(copied, tmp_path / "x.zip")
    assert ("benchmarks/heldout.parquet" in manifest.masked) is withheld


def test_a_score_that_changes_no_accuracy_is_noticed_too(packed, tmp_path):
    name = "scores/random/seed0/heldout.parquet"

    def raised(scores):
        # The better score of the first item grows: its pair is decided as before.
        scores[int(scores[1] > scores[0])] += 9.0
        return scores

    def change(contents):
        contents[name] = with_scores(contents[name], raised, tmp_path / "scores.parquet")
        with_new_digests(contents)

    differences = verify(rewritten(packed[0], tmp_path / "changed.zip", change)).differences
    assert any(text.startswith("random seed 0, heldout: made_from.scores is ") for text in differences)
    assert any(text.startswith("random seed 0, heldout: calibration") for text in differences)
    assert not any("heldout: test is" in text for text in differences)


def test_a_bundle_that_was_packed_again_with_folders_is_the_same(packed, tmp_path):
    again = rewritten(packed[0], tmp_path / "again.zip", lambda contents: contents.update({"runs/": b""}))
    assert verify(again).differences == ()


def test_forged_metrics_are_named_by_their_place_in_the_bundle(packed, tmp_path):
    name = "evaluation/random/seed0/metrics.json"

    def change(contents):
        contents[name] = contents[name].replace(b'"n_total"', b'"n_totals"')
        with_new_digests(contents)

    forged = rewritten(packed[0], tmp_path / "forged.zip", change)
    with pytest.raises(DataError, match=rf"{forged}: {name}: "):
        verify(forged)


@pytest.mark.parametrize(("license_text", "withheld"), [("CC BY-NC 4.0", True), ("MIT", False)])
def test_responses_of_policies_and_figures_with_words_follow_the_license(finished, tmp_path, license_text, withheld):
    copied = tmp_path / "results" / "study"
    shutil.copytree(finished, copied)
    report = json.loads((copied / "data" / "report.json").read_text())
    report["dataset"]["license"] = license_text
    (copied / "data" / "report.json").write_text(json.dumps(report))
    evaluation = copied / "ppo" / "random" / "seed0" / "evaluation.parquet"
    evaluation.parent.mkdir(parents=True)
    pq.write_table(pa.table({"response": ["A secret answer."], "gold": [0.5]}), evaluation)
    figure = copied / "diagnostics" / "random" / "seed0" / "teacher_maps.png"
    figure.parent.mkdir(parents=True)
    figure.write_bytes(b"a picture of words")
    manifest = write_bundle(copied, tmp_path / "x.zip")
    read_bundle(tmp_path / "x.zip", tmp_path / "unpacked")
    table = pq.read_table(tmp_path / "unpacked" / "ppo" / "random" / "seed0" / "evaluation.parquet")
    answer = "A secret answer."
    assert table.to_pylist() == [{"response": "x" * len(answer) if withheld else answer, "gold": 0.5}]
    figure_name = "diagnostics/random/seed0/teacher_maps.png"
    assert (figure_name in manifest.masked, figure_name in manifest.files) == (withheld, not withheld)
