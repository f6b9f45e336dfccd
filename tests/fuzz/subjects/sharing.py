"""Verbs that hand results on: report, bundle, verify, model cards, copies and pushes of models."""

from __future__ import annotations

import re
import zipfile

from rm_methods.bundle.archive import write_bundle
from tests.fuzz.changes import copy_tree, read_values
from tests.fuzz.subjects.base import Subject
from tests.fuzz.subjects.results import Finished

NOT_SHOWN = "Results that are not shown: "


class Report(Finished):
    """`report` on a finished experiment: the page shows what the files say, or names why not."""

    def targets(self, folder):
        return self._files(folder, "summary.json", "metrics.json", "credits.parquet")

    def arguments(self, folder):
        what = ["--config", folder / "config.yaml", "--experiment", folder / "results"]
        return ["report", *what, "--out", folder / "out" / "report.html"]

    def result(self, folder, outcome):
        page = (folder / "out" / "report.html").read_text()
        return re.findall(r'<td class="number[^"]*" data-key="([^"]*)">', page)

    def wrong(self, folder, change, outcome, result):
        page = (folder / "out" / "report.html").read_text()
        if NOT_SHOWN in page:
            return None if any(name in page for name in change.names if name) else "the page names nothing that changed"
        for variant in (folder / "results" / "evaluation").iterdir():
            files = variant.glob("seed*/metrics.json")
            values = [read_values(file)["benchmarks"]["heldout"]["metrics"]["test"] for file in files]
            if not any(abs(float(shown) - sum(values) / len(values)) < 1e-9 for shown in result if shown != "nan"):
                return f"silent: {variant.name} has a mean of {sum(values) / len(values)}, the page shows {result}"
        return None


class Bundle(Finished):
    """`bundle` on a finished experiment: what is packed is what is in the folder."""

    def build(self, folder):
        super().build(folder)
        copy_tree(self.seeds / "results" / "fuzz" / "config", folder / "results" / "config")
        copy_tree(self.seeds / "comparison", folder / "results" / "comparison")

    def targets(self, folder):
        return self._files(folder, "summary.json", "metrics.json", "fuzz.yaml")

    def arguments(self, folder):
        return ["bundle", "--experiment", folder / "results", "--out", folder / "out" / "x.zip"]

    def result(self, folder, outcome):
        with zipfile.ZipFile(folder / "out" / "x.zip") as archive:
            return sorted(archive.namelist())

    def wrong(self, folder, change, outcome, result):
        with zipfile.ZipFile(folder / "out" / "x.zip") as archive:
            for path in self._files(folder, "summary.json", "metrics.json"):
                if archive.read(path.relative_to(folder / "results").as_posix()) != path.read_bytes():
                    return f"silent: {path.name} is not what the folder has"
        return None


class Verify(Subject):
    """`verify` on a bundle whose bytes were changed: nothing but the original verifies."""

    def build(self, folder):
        original = self.seeds / "valid" / "bundle_for_verify.zip"
        if not original.exists():
            results = original.parent / "results_for_verify"
            copy_tree(self.seeds / "results" / "fuzz", results)
            copy_tree(self.seeds / "comparison", results / "comparison")
            write_bundle(results, original)
        copy_tree(original, folder / "study.zip")

    def targets(self, folder):
        return [folder / "study.zip"]

    def arguments(self, folder):
        return ["verify", folder / "study.zip"]

    def result(self, folder, outcome):
        return "OK: all are equal." in outcome.output

    def wrong(self, folder, change, outcome, result):
        # Bytes behind the archive's end, or in a date that nothing reads, change no file of it.
        with (
            zipfile.ZipFile(folder / "study.zip") as changed,
            zipfile.ZipFile(self.seeds / "valid" / "bundle_for_verify.zip") as original,
        ):
            contents = [{name: archive.read(name) for name in archive.namelist()} for archive in (changed, original)]
        return None if contents[0] == contents[1] else "silent: a changed bundle verifies"


class ModelFolder(Subject):
    """`model-card`, `copy-model` and `push --dry-run` on the model of a finished run."""

    has_checksums = True
    input_name = "model"

    def build(self, folder):
        copy_tree(self.seeds / "results" / "fuzz", folder / "results")

    def targets(self, folder):
        run = folder / "results" / "runs" / "bradley_terry" / "seed0"
        return [run / "summary.json", *sorted(path for path in (run / "model").iterdir() if path.suffix == ".json")]

    def arguments(self, folder):
        model = folder / "results" / "runs" / "bradley_terry" / "seed0" / "model"
        if self.name.startswith("model-card"):
            return ["model-card", "--model", model, "--out", folder / "out" / "README.md"]
        if self.name.startswith("copy-model"):
            return ["copy-model", "--model", model, "--license", "mit", "--out", folder / "out"]
        return ["push", "--model", model, "--to", "user/name", "--license", "mit", "--dry-run"]

    def result(self, folder, outcome):
        return outcome.code
