import shutil

import numpy as np
import pytest
import torch

from rm_methods.errors import UserError
from rm_methods.files import write_json
from rm_methods.interaction import teacher_maps
from rm_methods.interaction.teacher_maps import JointTeacher, PairAlignments, TeacherMaps, group_maps
from rm_methods.methods.joint_encoder import Method, _words
from rm_methods.methods.registry import load_method_card
from rm_methods.reward_models.backbones import load_classifier
from rm_methods.reward_models.joint_model import JointModel
from rm_methods.reward_models.joint_reader import CHOSEN, PROMPT, REJECTED, DecoderReader, EncoderReader
from rm_methods.reward_models.layouts import lay_out
from rm_methods.reward_models.tokenization import TokenizedItem


@pytest.fixture(scope="module")
def items(tokenizer, pairs):
    return tokenizer.encode((p.prompt, (p.chosen, p.rejected)) for p in pairs[:6])


@pytest.fixture(scope="module")
def teacher_folder(pairs, tmp_path_factory):
    """A random encoder with large weights, so that its maps are far from uniform."""
    from transformers import AutoModelForSequenceClassification

    method = Method(load_method_card("joint_encoder").defaults())
    reader = EncoderReader(_words(pairs, 1000), 128)
    method.settings["tiny"] = method.settings["tiny"] | {"initializer_range": 0.6}
    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(0)
    JointModel(AutoModelForSequenceClassification.from_config(method._tiny(reader, num_labels=1)), False).save(
        folder / "model"
    )
    reader.tokenizer.save_pretrained(folder / "model")
    write_json(folder / "summary.json", {"run_key": "made up"})
    return folder / "model"


def teacher(folder, layers=(-1,)):
    return JointTeacher(folder, max_length=256, layers=list(layers), key="key", precision="fp32")


def naive_group_map(model, reader, pair, layer):
    """By definition: loops over groups, one order after the other."""
    total = 0.0
    size = len(pair.segment)
    for ids, group in pair.rows:
        batch = lay_out([TokenizedItem((ids, ids), 0, (False,) * 2, (False,) * 2)], "plain", reader.pad_id)
        map_MM = model.attention_map(batch, layer)[0][0]
        grouped = torch.zeros(size, size)
        for u in range(size):
            for v in range(size):
                grouped[u, v] = map_MM[np.flatnonzero(group == u)][:, np.flatnonzero(group == v)].sum(1).mean()
        total = total + grouped / grouped.sum(1, keepdim=True) / 2
    return total


def test_group_maps_equal_their_definition(items, tokenizer, teacher_folder):
    made = teacher(teacher_folder)
    pairs = PairAlignments(items, tokenizer, made.reader).pairs
    maps, outside = group_maps(made.model, pairs, 1, made.reader.pad_id)
    assert 0.01 < outside < 0.99
    for pair, actual in zip(pairs, maps, strict=True):
        size = len(pair.segment)
        torch.testing.assert_close(
            actual[:size, :size], naive_group_map(made.model, made.reader, pair, 1), atol=1e-5, rtol=0
        )
        torch.testing.assert_close(actual[:size].sum(1), torch.ones(size), atol=1e-5, rtol=0)
        assert actual[size:].abs().sum() == 0 == actual[:, size:].abs().sum()
        assert (actual[:size, :size] - 1 / size).abs().max() > 0.05


def test_swapping_the_label_only_moves_the_blocks_of_a_map(tokenizer, pairs, teacher_folder):
    made = teacher(teacher_folder)
    pair = pairs[0]
    both = tokenizer.encode([(pair.prompt, (pair.chosen, pair.rejected)), (pair.prompt, (pair.rejected, pair.chosen))])
    aligned = PairAlignments(both, tokenizer, made.reader).pairs
    maps, _ = group_maps(made.model, aligned, 1, made.reader.pad_id)
    segment = aligned[0].segment
    order = np.concatenate([np.flatnonzero(segment == kind) for kind in (PROMPT, REJECTED, CHOSEN)])
    torch.testing.assert_close(maps[0][order][:, order], maps[1], atol=1e-5, rtol=0)


def test_a_teacher_with_the_students_tokens_has_singleton_groups(items, tokenizer, prepared):
    model = JointModel(load_classifier(prepared[1], prepared[2]["backbone"], 0).eval(), decoder=True)
    pairs = PairAlignments(items, tokenizer, DecoderReader(tokenizer)).pairs
    for pair in pairs:
        groups_of_text = pair.student[pair.student >= 0]
        assert groups_of_text.tolist() == list(range(len(pair.segment)))
        assert pair.rows[0][1].tolist() == pair.student.tolist()
    maps, _ = group_maps(model, pairs, 0, tokenizer.pad_id)
    assert maps.shape[0] == len(items)


def test_cached_maps_equal_those_computed_online(items, tokenizer, teacher_folder, tmp_path):
    made = teacher(teacher_folder)
    alignments = PairAlignments(items, tokenizer, made.reader)
    online = TeacherMaps(alignments, made, 1)
    cached = TeacherMaps(alignments, made, 1, cache=tmp_path)
    positions = [4, 0, 3]
    first, second = (maps.batch(positions, "cpu") for maps in (online, cached))
    assert torch.equal(first.segment, second.segment)
    torch.testing.assert_close(first.map, second.map, atol=1e-3, rtol=0)
    files = sorted(tmp_path.glob("*/*"))
    assert [path.name for path in files] == ["counts.json", "counts.json.sha256", "maps.npy", "maps.npy.sha256"]
    assert cached.counts["pairs"] == len(items)
    assert cached.counts["tokens"] == sum(len(ids) for pair in alignments.pairs for ids, _ in pair.rows)
    assert 0 < cached.counts["outside"] / len(items) < 1
    # Another layer or other pairs are other files; the same are the same.
    again = TeacherMaps(alignments, made, 1, cache=tmp_path)
    assert sorted(tmp_path.glob("*/*")) == files
    assert again.counts == cached.counts
    TeacherMaps(alignments, made, 0, cache=tmp_path)
    TeacherMaps(PairAlignments(items[:3], tokenizer, made.reader), made, 1, cache=tmp_path)
    assert len(list(tmp_path.glob("*/maps.npy"))) == 3


def test_made_up_teachers(items, tokenizer, teacher_folder):
    uniform = TeacherMaps(PairAlignments(items, tokenizer), None, 0).batch([0, 1], "cpu")
    for b in range(2):
        size = int((uniform.segment[b] >= 0).sum())
        torch.testing.assert_close(uniform.map[b, :size, :size], torch.full((size, size), 1 / size))
    made = teacher(teacher_folder)
    alignments = PairAlignments(items, tokenizer, made.reader)
    plain, rows, columns = (
        TeacherMaps(alignments, made, 1, shuffle).batch([2], "cpu").map[0] for shuffle in ("none", "rows", "columns")
    )
    torch.testing.assert_close(rows.sum(0), plain.sum(0), atol=1e-2, rtol=0)
    torch.testing.assert_close(columns.sort(1).values, plain.sort(1).values, atol=0, rtol=0)
    assert (rows - plain).abs().max() > 0.05 < (columns - plain).abs().max()


def test_pairs_without_joint_text_have_no_map(tokenizer, teacher_folder, tmp_path):
    short = type(tokenizer)(tokenizer.tokenizer, 64)
    prompt = [{"role": "user", "content": "one two three four five six seven eight nine ten " * 4}]
    items = short.encode(
        [(prompt, ("yes", "no no no no no no no no no no no")), ([{"role": "user", "content": "hi"}], ("yes", "no"))]
    )
    made = teacher(teacher_folder)
    alignments = PairAlignments(items, short, made.reader)
    assert alignments.pairs[0] is None
    assert alignments.counts["pairs_without_alignment"] == 1
    for cache in (None, tmp_path):
        actual = TeacherMaps(alignments, made, 1, cache=cache).batch([0, 1], "cpu")
        assert actual.map[0].abs().sum() == 0
        assert (actual.segment[0] == -1).all()
        assert actual.map[1].sum() > 0


def test_pairs_are_aligned_the_same_in_any_number_of_chunks(items, tokenizer, teacher_folder, monkeypatch):
    reader = teacher(teacher_folder).reader
    whole = PairAlignments(items, tokenizer, reader)
    monkeypatch.setattr(teacher_maps, "_PAIRS_AT_ONCE", 4)
    parts = PairAlignments(items, tokenizer, reader)
    assert parts.counts == whole.counts
    for one, other in zip(parts.pairs, whole.pairs, strict=True):
        assert np.array_equal(one.student, other.student)
        assert np.array_equal(one.segment, other.segment)
        assert all(
            np.array_equal(a, b) for rows in zip(one.rows, other.rows, strict=True) for a, b in zip(*rows, strict=True)
        )


def test_a_teacher_with_fewer_positions_than_the_pair_is_cut_and_counted(tokenizer, pairs):
    reader = EncoderReader(_words(pairs, 1000), 24)
    alignments = PairAlignments(
        tokenizer.encode((p.prompt, (p.chosen, p.rejected)) for p in pairs[:20]), tokenizer, reader
    )
    assert 0 < alignments.counts["pairs_cut_for_the_teacher"] <= 20
    assert 0 < alignments.counts["unmatched_text_tokens"] < 1


def test_layers_that_see_a_window_only_are_refused(teacher_folder, tmp_path):
    import json

    shutil.copytree(teacher_folder.parent, tmp_path / "run")
    config = tmp_path / "run" / "model" / "config.json"
    config.write_text(
        json.dumps(
            json.loads(config.read_text())
            | {"layer_types": ["full_attention", "sliding_attention"], "local_attention": 8}
        )
    )
    with pytest.raises(UserError, match=r"layers \[2\] of the teacher see a window only.*Use one of \[1\]"):
        teacher(tmp_path / "run" / "model", (2,))
    (tmp_path / "run" / "summary.json").unlink()
    with pytest.raises(UserError, match="with its summary beside it"):
        teacher(tmp_path / "run" / "model", (1,))


def test_mistakes_are_explained(items, tokenizer, teacher_folder, prepared):
    with pytest.raises(UserError, match=r"key: the model has 2 layers, so \[3\] do not exist"):
        teacher(teacher_folder, (3,))
    other = type(tokenizer)(tokenizer.tokenizer, 256)
    other.hash = lambda: "another"
    with pytest.raises(UserError, match="another tokenizer than the student"):
        PairAlignments(items, tokenizer, DecoderReader(other))
