"""Snapshots of tensors that share memory, are sparse or empty, or change although nothing trains them."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close

from vog_hf.errors import SnapshotError
from vog_hf.scoring.scorer import VoGScorer
from vog_hf.snapshots import SnapshotWriter, open_snapshots
from vog_hf.snapshots.writer import FROZEN_NAME

ROWS = [(x, k % 3) for k, x in enumerate(torch.randn(7, 4, generator=torch.Generator().manual_seed(0)))]


class Teacher(nn.Module):
    """A head that trains next to a frozen teacher, with more frozen weights on request."""

    def __init__(self, n_more=0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.head, self.teacher = nn.Linear(4, 3), nn.Linear(4, 3).requires_grad_(False)
        self.more = nn.Parameter(torch.zeros(n_more), requires_grad=False)

    def forward(self, x):
        return self.head(x).tanh() + self.teacher(x) ** 2


class OneMemory(nn.Module):
    """Parameters that are the same memory, overlapping slices, a transposed view and nothing at all."""

    def __init__(self):
        super().__init__()
        flat = torch.linspace(-1, 1, 12)
        self.flat = nn.Parameter(flat)
        self.weight = nn.Parameter(flat.view(3, 4))
        self.tied = nn.Parameter(self.weight.data)
        self.turned = nn.Parameter(flat.view(4, 3).T)
        self.register_buffer("window", flat[5:8])
        self.register_buffer("nothing", flat[6:6])

    def forward(self, x):
        return (x @ self.weight.T).tanh() * self.window + (x @ self.tied.T) ** 2 + x @ self.turned.T


def moved(model, step, teacher_from=1):
    """The model after one more step: the head trains, the teacher follows from some step on."""
    with torch.no_grad():
        model.head.weight.add_(torch.linspace(0, step, 12).view(3, 4))
        if step >= teacher_from:
            for slow, fast in zip(model.teacher.parameters(), model.head.parameters(), strict=True):
                slow.data = 0.5 * slow.data + 0.5 * fast.data  # no version counter sees this
    return model


def states_and_snapshots(model, folder, steps=(1, 2, 3), **options):
    """The whole states of a model, and its snapshots in a folder."""
    writer, states = SnapshotWriter(folder, model), []
    for step in steps:
        writer.take(moved(model, step, **options), step)
        states.append((f"step-{step}", {name: value.clone() for name, value in model.state_dict().items()}))
    return states


def vog_of(model, snapshots):
    """VoG of the rows."""
    return VoGScorer(model, batch_size=3, progress=False).score(ROWS, snapshots).column("vog")


@pytest.mark.parametrize("teacher_from", [1, 2, 3])
def test_a_frozen_teacher_that_moves_is_stored(tmp_path, teacher_from):
    """Scores are those of the whole states, whether the teacher moves before the first snapshot or after the second."""
    model = Teacher()
    states = states_and_snapshots(model, tmp_path, teacher_from=teacher_from)
    opened = open_snapshots(tmp_path, spool=tmp_path)
    assert not {"teacher.weight", "teacher.bias"} & opened.frozen.keys()
    for snapshot, (_, state) in zip(opened.snapshots, states, strict=True):
        assert_close(load_file(snapshot.files[0]), {n: v for n, v in state.items() if n != "more"}, rtol=0, atol=0)
    np.testing.assert_array_equal(vog_of(model, tmp_path), vog_of(model, states))
    assert len(list(tmp_path.glob("step-*.safetensors"))) == 3


def test_a_frozen_base_that_rests_is_stored_once_if_it_is_small(tmp_path):
    """What never moves stays out of the snapshots, and of a large base nothing is written at all."""
    states_and_snapshots(Teacher(), tmp_path / "small", teacher_from=9)
    states_and_snapshots(Teacher(n_more=1000), tmp_path / "large", teacher_from=9)
    assert set(load_file(tmp_path / "small" / "step-000000003.safetensors")) == {"head.weight", "head.bias"}
    assert set(load_file(tmp_path / "small" / FROZEN_NAME)) == {"teacher.weight", "teacher.bias", "more"}
    assert not (tmp_path / "large" / FROZEN_NAME).exists()


def test_a_late_move_within_a_large_base_is_refused_at_once(tmp_path):
    """The value that earlier snapshots lack is not to be had any more; a move from the first step on is stored."""
    with pytest.raises(SnapshotError, match=r"'teacher\.bias' has changed since the snapshot of step 2.*store='all'"):
        states_and_snapshots(Teacher(n_more=1000), tmp_path / "late", teacher_from=3)
    model = Teacher(n_more=1000)
    states = states_and_snapshots(model, tmp_path / "early")
    np.testing.assert_array_equal(vog_of(model, tmp_path / "early"), vog_of(model, states))


@pytest.mark.parametrize("resumed_at", [0, 1, 2])
def test_a_moving_teacher_survives_an_interruption(tmp_path, resumed_at):
    """A training that is resumed stores the teacher, although it began with another one."""
    model = Teacher()
    states = states_and_snapshots(model, tmp_path, steps=(1, 2))
    resumed = Teacher()
    if resumed_at:
        resumed.load_state_dict(states[resumed_at - 1][1])
    writer = SnapshotWriter(tmp_path, resumed)
    writer.continue_from(resumed_at)
    for step in range(resumed_at + 1, 4):
        writer.take(moved(resumed, step), step)
    whole = states_and_snapshots(Teacher(), tmp_path / "whole")
    np.testing.assert_array_equal(vog_of(resumed, tmp_path), vog_of(resumed, whole))


def test_parameters_in_one_memory_are_stored_each(tmp_path):
    """Overlapping, transposed and empty views come back with the values that they had, into the same memory."""
    model = OneMemory()
    writer, states = SnapshotWriter(tmp_path, model), []
    for step in (1, 2, 3):
        with torch.no_grad():
            model.flat.mul_(-0.5)
        writer.take(model, step)
        states.append((f"{step}", {name: value.clone() for name, value in model.state_dict().items()}))
        assert_close(load_file(tmp_path / f"step-{step:09d}.safetensors"), states[-1][1], rtol=0, atol=0)
    np.testing.assert_array_equal(vog_of(model, tmp_path), vog_of(model, states))
    assert model.tied.data_ptr() == model.weight.data_ptr() == model.flat.data_ptr()


def test_a_checkpoint_without_the_second_name_of_one_memory_is_whole(tmp_path):
    """`save_pretrained` leaves out what lies in the same memory; scores are those of a file with every name."""
    model = OneMemory()
    for scale in (1.0, 0.5, -2.0):
        state = {name: (scale * value).contiguous() for name, value in model.state_dict().items()}
        save_file(state, tmp_path / f"whole{scale}.safetensors")
        save_file({n: v for n, v in state.items() if n != "tied"}, tmp_path / f"less{scale}.safetensors")
    whole, less = (vog_of(model, sorted(tmp_path.glob(f"{kind}*"))) for kind in ("whole", "less"))
    np.testing.assert_array_equal(less, whole)


class Graph(nn.Module):
    """A sparse buffer between two layers."""

    def __init__(self, layout):
        super().__init__()
        self.head = nn.Linear(4, 3)
        neighbors = torch.eye(4) + torch.diag(torch.ones(3), 1)
        self.register_buffer("neighbors", neighbors if layout is torch.strided else neighbors.to_sparse(layout=layout))

    def forward(self, x):
        return self.head((self.neighbors @ x.T).T.tanh())


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_a_sparse_buffer_is_watched_and_not_stored(tmp_path, layout):
    """Scores are those of the dense buffer; a sparse one that changes is refused by name."""
    scores = []
    for kind in (torch.strided, layout):
        torch.manual_seed(0)
        model = Graph(kind)
        writer = SnapshotWriter(tmp_path / str(kind), model)
        for step in (1, 2):
            with torch.no_grad():
                model.head.weight.mul_(-2)
            writer.take(model, step)
        scores.append(vog_of(model, tmp_path / str(kind)))
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-6)
    model.neighbors = (2 * model.neighbors.to_dense()).to_sparse(layout=layout)
    with pytest.raises(SnapshotError, match=r"'neighbors' has changed since training began.*collect='live'"):
        writer.take(model, 3)


def test_a_trainable_parameter_that_no_file_can_hold_is_refused_first(tmp_path):
    """Before the training, not at its first snapshot; the dense parameter is stored."""
    model = Teacher()
    model.head.weight = nn.Parameter(model.head.weight.detach().to_sparse())
    with pytest.raises(SnapshotError, match=r"'head\.weight' .* is sparse.*collect='live'"):
        SnapshotWriter(tmp_path, model)
    model.head.weight = nn.Parameter(model.head.weight.detach().to_dense())
    assert SnapshotWriter(tmp_path, model).take(model, 1) is not None
