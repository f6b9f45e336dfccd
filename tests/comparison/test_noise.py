from dataclasses import replace

import pytest

from rm_methods.comparison.compare import build_comparison
from rm_methods.comparison.noise import compare_across_noise, merge_levels
from rm_methods.comparison.result import Column
from rm_methods.comparison.runs import read_runs
from rm_methods.config.variants import NoiseLevel
from rm_methods.errors import UserError

COLUMN = Column("rm_bench", "overall", "RM-Bench", 0.5)


@pytest.fixture
def noisy(experiment):
    """Files of three variants on two levels; "robust" keeps its ability, the others lose it."""
    folder = experiment()
    files = []
    for level, loss in (("", 0.0), ("_noise20", 2.5)):
        files += folder.add(f"bradley_terry{level}", 2.5 - loss, method="bradley_terry")
        files += folder.add(f"robust{level}", 2.5, method="robust")
    files += folder.add("longest", 0.0, seeds=(0,), seed_free=True, kind="content_blind", method="longest")
    return files


def levels():
    names = ("bradley_terry", "robust")
    clean = {name: name for name in (*names, "longest")}
    return [
        NoiseLevel(0.0, "symmetric", clean),
        NoiseLevel(0.2, "symmetric", {f"{n}_noise20": n for n in names} | {"longest": "longest"}),
    ]


def by_level(files, levels, reference):
    """The comparison of every level."""
    runs = read_runs(files, [COLUMN])
    return [
        build_comparison(
            [replace(r, variant=level.variants[r.variant]) for r in runs if r.variant in level.variants],
            [COLUMN],
            reference,
        )
        for level in levels
    ]


def test_one_table_of_all_levels_and_one_of_each(noisy, tmp_path):
    result = compare_across_noise(noisy, [COLUMN], "bradley_terry", levels(), tmp_path)
    assert [row.variant for row in result.comparison.rows] == ["bradley_terry", "robust", "longest"]
    assert [column.heading for column in result.comparison.columns] == ["RM-Bench, 0% flips", "RM-Bench, 20% flips"]
    made = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert {
        "table.txt",
        "symmetric_0/table.txt",
        "symmetric_20/table.md",
        "noise_rm_bench_overall.png",
        "comparison.svg",
        "ranks.svg",
        "symmetric_0/reliability.png",
    } <= made
    assert "the folder of each level" in (tmp_path / "ranks.svg").read_text()
    assert "two trained methods" in (tmp_path / "symmetric_0" / "ranks.svg").read_text()
    assert "20% flips" in result.text


def test_every_level_is_compared_with_its_own_reference(noisy, tmp_path):
    reference, robust, longest = compare_across_noise(
        noisy, [COLUMN], "bradley_terry", levels(), tmp_path
    ).comparison.rows
    assert [cell.verdict for cell in reference.cells] == ["reference", "reference"]
    for cell, base in zip(robust.cells, reference.cells, strict=True):
        assert cell.difference.estimate.mean == pytest.approx(cell.estimate.mean - base.estimate.mean)
    assert robust.cells[1].difference.estimate.mean > robust.cells[0].difference.estimate.mean + 0.1
    assert longest.cells[0].estimate == longest.cells[1].estimate


def test_costs_of_the_levels_are_averaged_and_footnotes_say_of_which_level_they_are(noisy, tmp_path, edit_json):
    (robust,) = [files for files in noisy if "robust_noise20/seed0" in str(files.summary)]
    edit_json(robust.metrics, lambda content: content["benchmarks"]["rm_bench"].update(tie_rate=0.3))
    edit_json(robust.summary, lambda content: content["cost"].update(tokens=1_250_000 + 600_000))
    merged = compare_across_noise(noisy, [COLUMN], "bradley_terry", levels(), tmp_path).comparison
    assert merged.rows[1].cost.tokens == pytest.approx(1_250_000 + 100_000)  # one of six runs
    assert "20% flips: Tie rate above 0.5%: robust on rm_bench 10.0%." in merged.notes
    assert sum("Cost of training" in note for note in merged.notes) == 1


def test_a_variant_that_a_level_lacks_has_no_cell_there(noisy):
    partial = NoiseLevel(0.2, "symmetric", {"bradley_terry_noise20": "bradley_terry"})
    merged = merge_levels([levels()[0], partial], by_level(noisy, [levels()[0], partial], None))
    cells = {row.variant: row.cells for row in merged.rows}
    assert cells["robust"][0] is not None
    assert cells["robust"][1] is None


def test_a_level_without_runs_is_refused(noisy, tmp_path):
    with pytest.raises(UserError, match="No run has 40% flips"):
        compare_across_noise(noisy, [COLUMN], "bradley_terry", [*levels(), NoiseLevel(0.4, "symmetric", {})], tmp_path)
