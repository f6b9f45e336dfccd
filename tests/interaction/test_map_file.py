import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
import torch

from rm_methods.errors import UserError
from rm_methods.interaction import map_file as module
from rm_methods.interaction.map_file import map_file
from rm_methods.system import run_lock

pytestmark = pytest.mark.process

SIZES, LENGTHS = [3, 0, 1, 5, 2, 0], [4, 0, 2, 6, 3, 0]
# Every cell of a pair's map holds its position.
FILES = ["counts.json", "counts.json.sha256", "maps.npy", "maps.npy.sha256"]
EXPECTED = [0] * 9 + [2] * 1 + [3] * 25 + [4] * 4


class Teacher:
    def __init__(self):
        self.done = []

    def maps(self, positions):
        self.done += positions
        return [np.full((SIZES[k], SIZES[k]), k, dtype=np.float16) for k in positions]

    def file(self, folder):
        return map_file(folder, SIZES, LENGTHS, compute=self.maps, counts=lambda: {"pairs": len(self.done)})


def test_each_pair_is_computed_once_and_lies_in_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_TOKENS_AT_ONCE", 14)
    teacher = Teacher()
    maps, counts = teacher.file(tmp_path)
    assert maps.tolist() == EXPECTED
    assert counts == {"pairs": 4}
    assert teacher.done == [3, 0, 4, 2]
    again = Teacher()
    maps, counts = again.file(tmp_path)
    assert (maps.tolist(), counts, again.done) == (EXPECTED, {"pairs": 4}, [])


def test_no_pairs_make_an_empty_file(tmp_path):
    for sizes in ([], [0, 0]):
        folder = tmp_path / str(len(sizes))
        map_file(folder, sizes, [0] * len(sizes), compute=lambda positions: [], counts=dict)
        assert (folder / "maps.npy").exists()


def of_rank(rank, ranks, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    teacher = Teacher()
    maps, counts = teacher.file(folder / "maps")
    (folder / f"{rank}.json").write_text(json.dumps([maps.tolist(), counts, teacher.done]))
    torch.distributed.destroy_process_group()


def test_ranks_share_the_work_and_make_the_file_of_one(tmp_path):
    torch.multiprocessing.spawn(of_rank, (3, tmp_path), nprocs=3)
    actual = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    assert all(maps == EXPECTED and counts == {"pairs": 4} for maps, counts, _ in actual)
    assert sorted(position for _, _, done in actual for position in done) == [0, 2, 3, 4]
    assert max(len(done) for _, _, done in actual) < 4
    assert sorted(file.name for file in (tmp_path / "maps").iterdir()) == FILES


@pytest.mark.parametrize("ranks", [1, 2, 3, 9])
def test_shares_are_stretches_of_about_as_many_tokens(ranks):
    lengths = np.array([5, 0, 9, 2, 2, 7, 4, 4, 1, 6])
    bounds = module._shares(np.minimum(lengths, 1), lengths, ranks)
    assert (bounds[0], bounds[-1], len(bounds)) == (0, 10, ranks + 1)
    assert bounds == sorted(bounds)
    shares = [lengths[start:end].sum() for start, end in pairwise(bounds)]
    assert max(abs(share - 40 / ranks) for share in shares) <= 9


def test_of_two_runs_one_computes_and_the_other_waits(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "POLL_SECONDS", 0.02)
    started, go = threading.Event(), threading.Event()
    first, second = Teacher(), Teacher()

    def slow(positions):
        started.set()
        assert go.wait(60)
        return first.maps(positions)

    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(map_file, tmp_path, SIZES, LENGTHS, compute=slow, counts=lambda: {"pairs": len(first.done)})
        assert started.wait(60)
        other = pool.submit(second.file, tmp_path)
        time.sleep(0.2)
        assert not other.done()
        go.set()
        for maps, counts in (one.result(60), other.result(60)):
            assert (maps.tolist(), counts) == (EXPECTED, {"pairs": 4})
    assert second.done == []


def test_what_a_killed_run_left_is_removed(tmp_path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "0.npy").write_text("half")
    maps, _ = Teacher().file(tmp_path)
    assert maps.tolist() == EXPECTED
    assert sorted(file.name for file in tmp_path.iterdir()) == FILES


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "damaged", [lambda content: content[:-3], lambda content: bytes(len(content)), lambda content: b""]
)
def test_damaged_maps_are_made_again_and_not_read(tmp_path, capsys, name, damaged):
    Teacher().file(tmp_path)
    file = tmp_path / name
    file.write_bytes(damaged(file.read_bytes()))
    teacher = Teacher()
    maps, counts = teacher.file(tmp_path)
    assert (maps.tolist(), counts) == (EXPECTED, {"pairs": 4})
    assert teacher.done
    assert "is made again" in capsys.readouterr().err


def test_an_error_leaves_nothing_behind(tmp_path):
    def fails(positions):
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        map_file(tmp_path, SIZES, LENGTHS, compute=fails, counts=dict)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_small_is_noticed_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(100, 0, 10))
    with pytest.raises(UserError, match="set online: true"):
        Teacher().file(tmp_path)
    assert list(tmp_path.iterdir()) == []
