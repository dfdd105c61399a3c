import copy
import json
import weakref
from pathlib import Path

import models
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.testing import assert_close

from vog_hf.errors import ConfigError, SnapshotError
from vog_hf.runtime.files import read_json
from vog_hf.scoring.scorer import VoGScorer
from vog_hf.snapshots import (
    INDEX_NAME,
    SnapshotWriter,
    aliases,
    model_tensors,
    open_folder,
    open_snapshots,
    temporary_weights,
    tensor_digest,
)


class Backbone(nn.Module):
    """A frozen first layer, BatchNorm, a buffer that is not stored, and a head that trains."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 3)
        self.register_buffer("scale", torch.tensor(2.0), persistent=False)
        self.first.requires_grad_(False)

    def forward(self, features):
        return self.head(self.norm(self.first(features)).tanh() * self.scale)


def backbone(seed=0):
    """The same weights for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Backbone().eval()


ROWS = [{**row, "labels": label} for row, label in zip(models.mlp().rows, models.mlp().labels, strict=True)]


def trained(model, folder, n=3, **options):
    """Snapshots of a model whose trainable weights and statistics move; returns its states, too."""
    writer = SnapshotWriter(folder, model, **options)
    states = []
    for step in range(1, n + 1):
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * step)
            for name, buffer in model.named_buffers():
                if name.endswith("running_mean"):
                    buffer.add_(0.3)
        writer.take(model, step * 10)
        states.append({name: value.clone() for name, value in model.state_dict().items()})
    return writer, states


def named(states):
    """States with the names of epochs."""
    return [(f"epoch-{k}", state) for k, state in enumerate(states)]


def vog_of(model, snapshots):
    """VoG of the rows from some snapshots."""
    return VoGScorer(model, batch_size=2).score(ROWS, snapshots).column("vog")


def saved(folder, states):
    """Each state as ``checkpoint-<step>/model.safetensors``, the way Trainer leaves them."""
    for step, state in states.items():
        (folder / f"checkpoint-{step}").mkdir(parents=True)
        save_file(state, folder / f"checkpoint-{step}" / "model.safetensors")


# --- writing --------------------------------------------------------------------------------------------------------


def test_just_what_training_changes_is_stored(tmp_path):
    """Trainable parameters and persistent buffers; a replay from them equals one from whole state dicts."""
    model = backbone()
    writer, states = trained(model, tmp_path)
    stored = load_file(tmp_path / "step-000000010.safetensors")
    assert set(stored) == {
        "head.weight",
        "head.bias",
        "norm.weight",
        "norm.bias",
        "norm.running_mean",
        "norm.running_var",
        "norm.num_batches_tracked",
    }
    assert_close(stored, {name: states[0][name] for name in stored}, rtol=0, atol=0)
    assert writer.steps == [10, 20, 30]
    assert writer.snapshot_bytes == sum(value.nbytes for value in stored.values())
    np.testing.assert_allclose(vog_of(model, tmp_path), vog_of(model, named(states)), rtol=1e-6)


def test_everything_is_stored_on_request(tmp_path):
    """store='all' keeps frozen weights too, so that nothing is left to verify and a base may change in training."""
    model = backbone()
    writer = SnapshotWriter(tmp_path, model, store="all")
    writer.take(model, 1)
    model.first.requires_grad_(True)
    with torch.no_grad():
        model.first.weight += 1
    writer.take(model, 2)
    assert set(load_file(tmp_path / "step-000000001.safetensors")) == set(model.state_dict())
    assert open_snapshots(tmp_path, spool=tmp_path).frozen == {}
    assert (vog_of(backbone(seed=1), tmp_path) > 0).all()


def test_a_frozen_weight_that_changed_is_refused(tmp_path):
    """Another base under the same head would give other gradients: refused by name, the same base is accepted."""
    model = backbone()
    trained(model, tmp_path)
    same = backbone()
    vog_of(same, tmp_path)
    with torch.no_grad():
        same.first.bias[2] += 1e-6
    with pytest.raises(SnapshotError, match=r"frozen tensor 'first\.bias' is not what it was.*store='all'"):
        vog_of(same, tmp_path)
    with pytest.raises(SnapshotError, match=r"frozen tensor 'first\.weight' that this model does not have"):
        vog_of(models.MLP(), tmp_path)


def test_a_parameter_that_thaws_in_mid_run_is_refused(tmp_path):
    """Earlier snapshots lack it; the message gives the step and names store='all'. Freezing more does no harm."""
    model = backbone()
    writer, _ = trained(model, tmp_path)
    model.head.bias.requires_grad_(False)
    writer.take(model, 40)
    model.first.weight.requires_grad_(True)
    with pytest.raises(
        SnapshotError, match=r"'first\.weight' was frozen .* trainable now \(last snapshot: step 40\).*store='all'"
    ):
        writer.take(model, 50)
    assert writer.steps == [10, 20, 30, 40]


def test_a_model_with_nothing_to_train_and_an_unknown_store_are_refused(tmp_path):
    """Snapshots that cannot differ are an error when training begins, not a column of zeros at its end."""
    with pytest.raises(ConfigError, match="no parameter of the model is trainable"):
        SnapshotWriter(tmp_path, backbone().requires_grad_(False))
    with pytest.raises(ConfigError, match="store must be 'trainable' or 'all', got 'some'"):
        SnapshotWriter(tmp_path, backbone(), store="some")


def test_writing_a_snapshot_changes_nothing_in_the_model(tmp_path):
    """Also tied and non-contiguous weights are stored without being touched, and read back as they were."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].weight = model[1].weight
    model[1].bias = nn.Parameter(torch.arange(8.0)[::2])
    before = {name: (value.data_ptr(), value.stride(), value.clone()) for name, value in model.state_dict().items()}
    writer = SnapshotWriter(tmp_path, model)
    writer.take(model, 1)
    after = {name: (value.data_ptr(), value.stride(), value.clone()) for name, value in model.state_dict().items()}
    assert_close(after, before, rtol=0, atol=0)
    assert set(load_file(tmp_path / "step-000000001.safetensors")) == {"0.weight", "0.bias", "1.bias"}
    assert aliases(model)["1.weight"] == "0.weight"
    assert "1.weight" not in model_tensors(model)


def test_gathering_copies_nothing_and_writing_stores_it(tmp_path):
    """The two steps of taking a snapshot: of a model that is not sharded, the first gives the model's own memory."""
    model = backbone()
    writer = SnapshotWriter(tmp_path, model)
    gathered = writer.gather(model)
    own = model_tensors(model)
    assert {name: value.data_ptr() for name, value in gathered.items()} == {n: own[n].data_ptr() for n in gathered}
    assert not any(value.requires_grad for value in gathered.values())
    assert writer.steps == []
    writer.write(gathered, 7)
    assert writer.steps == [7]
    stored = load_file(tmp_path / "step-000000007.safetensors")
    assert_close(stored, {name: own[name].detach() for name in stored}, rtol=0, atol=0)


def test_a_model_that_has_lost_a_tensor_is_refused(tmp_path):
    """Its later snapshots would lack what the earlier ones have; one tensor more that trains is found when loading."""
    model = backbone()
    writer, _ = trained(model, tmp_path)
    model.norm = nn.BatchNorm1d(4, affine=False)
    with pytest.raises(SnapshotError, match=r"lost the tensor 'norm\.bias' since training began"):
        writer.take(model, 40)
    model.norm = nn.BatchNorm1d(4)
    writer.take(model, 40)


def test_wrappers_of_activation_checkpointing_do_not_show_in_names(tmp_path):
    """State dicts leave them out, names of parameters do not: such a model stores, and is scored, as one without."""
    model, wrapped = backbone(), backbone()
    wrapped.first, wrapped.head = checkpoint_wrapper(wrapped.first), checkpoint_wrapper(wrapped.head)
    assert "head._checkpoint_wrapped_module.weight" in dict(wrapped.named_parameters())
    assert list(model_tensors(wrapped)) == list(model_tensors(model))
    assert set(model_tensors(model)) == set(model.state_dict())
    _, states = trained(wrapped, tmp_path)
    expected = vog_of(model, named(states))
    for scored in (model, wrapped):
        np.testing.assert_array_equal(vog_of(scored, tmp_path), expected)
        np.testing.assert_array_equal(vog_of(scored, named(states)), expected)


def test_an_interrupted_training_continues_with_its_snapshots(tmp_path):
    """Those up to the step it resumes from are taken over, newer ones deleted, files and index alike."""
    model = backbone()
    trained(model, tmp_path, n=4)
    writer = SnapshotWriter(tmp_path, model)
    writer.continue_from(25)
    assert writer.steps == [10, 20]
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == [
        "step-000000010.safetensors",
        "step-000000020.safetensors",
    ]
    writer.take(model, 30)
    assert [snapshot.step for snapshot in open_snapshots(tmp_path, spool=tmp_path).snapshots] == [10, 20, 30]
    assert (vog_of(model, tmp_path) > 0).all()


def test_a_kill_while_newer_snapshots_are_deleted_leaves_a_folder_that_can_be_continued(tmp_path, monkeypatch):
    """The index is written first, so that it never names a file that is gone; what was left over goes later."""
    model = backbone()
    trained(model, tmp_path, n=4)

    def killed(path, unlink=Path.unlink, **options):
        if path.suffix == ".safetensors":
            raise KeyboardInterrupt
        unlink(path, **options)

    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            SnapshotWriter(tmp_path, model).continue_from(25)
    assert [snapshot.step for snapshot in open_snapshots(tmp_path, spool=tmp_path).snapshots] == [10, 20]
    writer = SnapshotWriter(tmp_path, model)
    writer.continue_from(25)
    assert writer.steps == [10, 20]
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_a_snapshot_that_is_gone_is_named_when_training_continues(tmp_path):
    """Not days later, when it is scored; one behind the step that training continues from is not missed."""
    model = backbone()
    trained(model, tmp_path)
    (tmp_path / "step-000000020.safetensors").unlink()
    with pytest.raises(SnapshotError, match=r"step-000000020\.safetensors is missing, .*; restore it, or delete"):
        SnapshotWriter(tmp_path, model).continue_from(25)
    writer = SnapshotWriter(tmp_path, model)
    writer.continue_from(15)
    assert writer.steps == [10]


def test_continuing_over_another_base_is_refused_and_over_nothing_begins_anew(tmp_path):
    """Snapshots of two bases would not be one training; an empty folder is a fresh start."""
    trained(backbone(), tmp_path / "run")
    with pytest.raises(SnapshotError, match="other frozen weights; choose another output_dir"):
        SnapshotWriter(tmp_path / "run", backbone(seed=1)).continue_from(20)
    writer = SnapshotWriter(tmp_path / "new", backbone())
    writer.continue_from(20)
    assert writer.steps == []


# --- finding --------------------------------------------------------------------------------------------------------


def test_a_run_folder_and_its_snapshots_folder_are_the_same(tmp_path):
    """A callback's folder holds `snapshots/`; either may be named."""
    model = backbone()
    trained(model, tmp_path / "snapshots")
    assert open_snapshots(tmp_path, spool=tmp_path) == open_snapshots(tmp_path / "snapshots", spool=tmp_path)
    np.testing.assert_array_equal(vog_of(model, tmp_path), vog_of(model, str(tmp_path / "snapshots")))


def test_checkpoint_folders_are_taken_in_the_order_of_their_steps(tmp_path):
    """checkpoint-9 comes before checkpoint-10 and checkpoint-100, whatever the file system lists first."""
    model = models.mlp().model
    states = models.perturbed_states(model, 4)
    saved(tmp_path, dict(zip((100, 9, 1000, 10), states, strict=True)))
    (tmp_path / "checkpoint-best").mkdir()
    found = open_snapshots(tmp_path, spool=tmp_path)
    assert [snapshot.name for snapshot in found.snapshots] == [f"checkpoint-{n}" for n in (9, 10, 100, 1000)]
    assert [snapshot.step for snapshot in found.snapshots] == [9, 10, 100, 1000]
    ordered = [states[1], states[3], states[0], states[2]]
    np.testing.assert_allclose(vog_of(model, tmp_path), vog_of(model, named(ordered)), rtol=1e-6)


@pytest.mark.parametrize("name", ["checkpoint-7", "epoch_3", "epoch_3.safetensors"])
def test_a_checkpoint_that_leads_nowhere_is_refused(tmp_path, name):
    """A link to a disk that is not mounted is named: without it the scores would come from fewer snapshots."""
    kind = "checkpoint-{}" if name.startswith("checkpoint") else "epoch_{}"
    for number in (1, 2):
        (tmp_path / kind.format(number)).mkdir()
        save_file({"weight": torch.zeros(1)}, tmp_path / kind.format(number) / "model.safetensors")
    (tmp_path / name).symlink_to(tmp_path / "unmounted")
    with pytest.raises(SnapshotError, match=f"{name} holds no model.safetensors"):
        open_folder(tmp_path)


def test_a_sharded_checkpoint_is_one_snapshot(tmp_path):
    """The files that model.safetensors.index.json names are read together; a missing shard is named."""
    model = models.bert().model
    states = models.perturbed_states(model, 2)
    rows = [{**row, "labels": y} for row, y in zip(models.bert().rows, models.bert().labels, strict=True)]
    for k, state in enumerate(states):
        copied = copy.deepcopy(model)
        copied.load_state_dict(state)
        copied.save_pretrained(tmp_path / f"checkpoint-{k}", max_shard_size="3KB")
    shards = sorted((tmp_path / "checkpoint-1").glob("model-*.safetensors"))
    assert len(shards) > 1
    scorer = VoGScorer(model, batch_size=2)
    sharded = scorer.score(rows, tmp_path, collate_fn=models.collate)
    whole = scorer.score(rows, named(states), collate_fn=models.collate)
    np.testing.assert_allclose(sharded.column("vog"), whole.column("vog"), rtol=1e-5)
    shards[1].unlink()
    with pytest.raises(SnapshotError, match=f"'checkpoint-1' is missing its file .*{shards[1].name}"):
        scorer.score(rows, tmp_path, collate_fn=models.collate)


def test_a_list_is_taken_in_the_order_given(tmp_path):
    """Files and model folders, mixed, in the order of training that the caller knows; same names are told apart."""
    model = models.mlp().model
    states = models.perturbed_states(model, 3)
    saved(tmp_path / "run", {2: states[0]})
    save_file(states[1], tmp_path / "last.safetensors")
    saved(tmp_path / "other", {2: states[2]})
    paths = [tmp_path / "last.safetensors", str(tmp_path / "run" / "checkpoint-2"), tmp_path / "other" / "checkpoint-2"]
    names = [snapshot.name for snapshot in open_snapshots(paths, spool=tmp_path).snapshots]
    assert names == [str(path) for path in paths]
    expected = vog_of(model, named([states[1], states[0], states[2]]))
    np.testing.assert_allclose(vog_of(model, paths), expected, rtol=1e-6)


def test_state_dicts_of_a_generator_are_spooled_one_by_one(tmp_path):
    """However many there are, at most the one just written and the one being made are in memory."""
    alive, peak = [], []

    def states():
        for k in range(8):
            state = {"weight": torch.full((4,), float(k))}
            alive.append(weakref.ref(state["weight"]))
            peak.append(sum(reference() is not None for reference in alive))
            yield f"epoch-{k}", state
            del state

    found = open_snapshots(states(), spool=tmp_path)
    assert max(peak) <= 2
    assert [snapshot.name for snapshot in found.snapshots] == [f"epoch-{k}" for k in range(8)]
    for k, snapshot in enumerate(found.snapshots):
        assert load_file(snapshot.files[0])["weight"].tolist() == [k] * 4


def test_state_dicts_may_share_memory_with_the_model_and_each_other(tmp_path):
    """model.state_dict() of a tied model, yielded as it is, is stored as of that moment."""
    case = models.gpt2()

    def states():
        for k in range(3):
            with torch.no_grad():
                case.model.transformer.wte.weight.mul_(1.1)
            yield f"step-{k}", case.model.state_dict()

    rows = [{**row, "labels": y} for row, y in zip(case.rows, case.labels, strict=True)]
    assert (VoGScorer(case.model).score(rows, states(), collate_fn=models.collate).column("vog") > 0).all()


@pytest.mark.parametrize(
    "states",
    [lambda s: s, lambda s: dict(named(s)), lambda s: [(name, list(state)) for name, state in named(s)]],
    ids=["bare", "mapping", "names only"],
)
def test_what_is_no_pair_of_name_and_state_is_refused(states):
    """Bare state dicts, a mapping, or pairs with something else: the message shows the form; pairs are accepted."""
    model = models.mlp().model
    found = models.perturbed_states(model, 2)
    with pytest.raises(SnapshotError, match=r"pairs \(name, state_dict\), got (a \w+ at position 0|\{.* \(dict\))"):
        vog_of(model, states(found))
    vog_of(model, named(found))


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_snapshots_are_refused(tmp_path, n):
    """A deviation needs two: from state dicts, from a list and from a folder; the message says how many there are."""
    model = models.mlp().model
    states = models.perturbed_states(model, 2)
    with pytest.raises(SnapshotError, match=f"at least 2 snapshots, got {n}"):
        vog_of(model, named(states[:n]))
    saved(tmp_path, dict(enumerate(states)))
    with pytest.raises(SnapshotError, match=f"at least 2 snapshots, got {n}"):
        vog_of(model, [tmp_path / "checkpoint-0"][:n])
    assert (vog_of(model, tmp_path) > 0).all()


def test_snapshots_of_one_name_are_refused():
    """Two epochs called alike would be told apart by nothing in the manifest."""
    model = models.mlp().model
    states = models.perturbed_states(model, 2)
    with pytest.raises(SnapshotError, match="different names"):
        vog_of(model, [("epoch", state) for state in states])


def test_a_folder_without_snapshots_is_refused(tmp_path):
    """The message says what was looked for."""
    with pytest.raises(SnapshotError, match=rf"holds no snapshots: expected {INDEX_NAME}.*checkpoint-<step>"):
        vog_of(models.mlp().model, tmp_path / "nothing")
    (tmp_path / "checkpoint-1").mkdir()
    with pytest.raises(SnapshotError, match=r"checkpoint-1 holds no model\.safetensors"):
        vog_of(models.mlp().model, tmp_path)


# --- files that are not what they should be -------------------------------------------------------------------------


def test_pickled_weights_are_refused(tmp_path):
    """Unpickling runs code: the file and the way to safetensors are named; an optimizer's pickle does not matter."""
    model = models.mlp().model
    states = models.perturbed_states(model, 2)
    saved(tmp_path, dict(enumerate(states)))
    for k in range(2):
        torch.save({}, tmp_path / f"checkpoint-{k}" / "optimizer.pt")
        torch.save({}, tmp_path / f"checkpoint-{k}" / "training_args.bin")
    vog_of(model, tmp_path)
    (tmp_path / "checkpoint-1" / "model.safetensors").unlink()
    torch.save(states[1], tmp_path / "checkpoint-1" / "pytorch_model.bin")
    with pytest.raises(SnapshotError, match=r"pytorch_model\.bin is not safetensors.*save_pretrained"):
        vog_of(model, tmp_path)
    torch.save(states[0], tmp_path / "weights.pt")
    with pytest.raises(SnapshotError, match=r"weights\.pt is not safetensors"):
        vog_of(model, [tmp_path / "weights.pt", tmp_path / "checkpoint-0"])


def changed(state, **changes):
    """A state with a tensor added or replaced."""
    return {**state, **changes}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: changed(s, extra=torch.zeros(2)), r"'epoch-1' has 1 tensors that the model does not have.*'extra'"),
        (lambda s: {k: v for k, v in s.items() if k != "out.bias"}, r"'epoch-1' lacks 1 tensors.*'out\.bias'"),
        (
            lambda s: changed(s, **{"out.bias": torch.zeros(4)}),
            r"'epoch-1': 'out\.bias' has shape \(4,\), the model's \(3,\)",
        ),
    ],
    ids=["unexpected", "missing", "shape"],
)
def test_weights_of_another_model_are_refused(change, message):
    """One tensor too many, too few or of another shape: refused with the snapshot and the tensor named."""
    model = models.mlp().model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    states = models.perturbed_states(model, 3)
    with pytest.raises(SnapshotError, match=message):
        vog_of(model, named([states[0], change(states[1]), states[2]]))
    assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    vog_of(model, named(states))


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module."])
def test_state_dicts_of_compiled_and_parallel_modules_are_those_of_the_model(prefix):
    """What torch.compile and DistributedDataParallel write before each name changes no score, in any nesting."""
    model = models.mlp().model
    states = models.perturbed_states(model, 3)
    wrapped = [{prefix + name: value for name, value in state.items()} for state in states]
    assert vog_of(model, named(wrapped)).tolist() == vog_of(model, named(states)).tolist()
    with pytest.raises(SnapshotError, match=r"the model does not have \(first: '.*module\.other'"):
        vog_of(model, named([states[0], changed(wrapped[1], **{"module.other": torch.zeros(2)}), wrapped[2]]))


def test_checkpoint_folders_of_a_compiled_transformer_are_scored(tmp_path):
    """Names of a compiled module in ``model.safetensors`` are those of the model inside, also for transformers."""
    case = models.bert()
    states = models.perturbed_states(case.model, 2)
    saved(tmp_path / "plain", dict(enumerate(states)))
    saved(tmp_path / "compiled", {k: {f"_orig_mod.{n}": v for n, v in s.items()} for k, s in enumerate(states)})
    rows = [{**row, "labels": label} for row, label in zip(case.rows, case.labels, strict=True)]
    plain, compiled = (
        VoGScorer(case.model).score(rows, tmp_path / name, collate_fn=models.collate).column("vog")
        for name in ("plain", "compiled")
    )
    assert compiled.tolist() == plain.tolist()
    assert plain.max() > 0


def test_two_values_for_one_shared_tensor_are_refused():
    """A model whose head is tied to its embedding cannot hold a state in which they differ; equal ones are fine."""
    case = models.gpt2()
    rows = [{**row, "labels": y} for row, y in zip(case.rows, case.labels, strict=True)]
    states = models.perturbed_states(case.model, 2)
    for state in states:
        state["lm_head.weight"] += 1
    with pytest.raises(SnapshotError, match=r"two different values for 'transformer\.wte\.weight'.*tied"):
        VoGScorer(case.model).score(rows, named(states), collate_fn=models.collate)
    for state in states:
        state["lm_head.weight"] = state["transformer.wte.weight"].clone()
    VoGScorer(case.model).score(rows, named(states), collate_fn=models.collate)
    for state in states:
        del state["lm_head.weight"]  # as save_pretrained leaves it
    VoGScorer(case.model).score(rows, named(states), collate_fn=models.collate)


@pytest.mark.parametrize("damage", ["flipped bit", "truncated", "missing", "replaced"])
def test_a_damaged_snapshot_of_ours_is_refused(tmp_path, damage):
    """Digests of the bytes were recorded when they were written: one flipped bit is enough, and the name is given."""
    model = backbone()
    trained(model, tmp_path)
    path = tmp_path / "step-000000020.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    {
        "flipped bit": lambda: path.write_bytes(content),
        "truncated": lambda: path.write_bytes(content[:-10]),
        "missing": path.unlink,
        "replaced": lambda: path.write_bytes((tmp_path / "step-000000010.safetensors").read_bytes()),
    }[damage]()
    expected = "is missing its file" if damage == "missing" else "is damaged: its bytes are not those that were written"
    with pytest.raises(SnapshotError, match=rf"'step-000000020'.*{expected}"):
        vog_of(model, tmp_path)


@pytest.mark.parametrize("content", [b"", b"not safetensors", None], ids=["empty", "text", "truncated"])
def test_a_damaged_checkpoint_of_others_is_refused(tmp_path, content):
    """Without a recorded digest a file that cannot be read is refused when it is loaded, and named."""
    model = models.mlp().model
    saved(tmp_path, dict(enumerate(models.perturbed_states(model, 3))))
    path = tmp_path / "checkpoint-1" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10] if content is None else content)
    with pytest.raises(SnapshotError, match=r"'checkpoint-1' .* cannot be read"):
        vog_of(model, tmp_path)


@pytest.mark.parametrize(
    "content", ["", '{"format": 1, "snapshots": [', "{}", "[]", '{"snapshots": [1], "frozen": {}}']
)
def test_a_damaged_index_of_ours_is_refused(tmp_path, content):
    """A torn or foreign file is named; it is never taken for a folder without snapshots."""
    model = backbone()
    trained(model, tmp_path)
    whole = (tmp_path / INDEX_NAME).read_text()
    (tmp_path / INDEX_NAME).write_text(content)
    with pytest.raises(SnapshotError, match=rf"{INDEX_NAME} is damaged"):
        vog_of(model, tmp_path)
    (tmp_path / INDEX_NAME).write_text(whole)
    vog_of(model, tmp_path)


@pytest.mark.parametrize("content", ["", '{"weight_map": {"a', "{}", "[]", '{"weight_map": ["a"]}'])
def test_a_damaged_index_of_a_sharded_checkpoint_is_refused(tmp_path, content):
    """The index is named; nothing is said of deleting folders."""
    model = models.mlp().model
    saved(tmp_path, dict(enumerate(models.perturbed_states(model, 2))))
    folder = tmp_path / "checkpoint-1"
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(content)
    with pytest.raises(SnapshotError, match=r"model\.safetensors\.index\.json is not an index of a sharded model"):
        vog_of(model, tmp_path)
    index.write_text(json.dumps({"weight_map": dict.fromkeys(model.state_dict(), "model-00001-of-00001.safetensors")}))
    vog_of(model, tmp_path)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/outside.safetensors", "sub/inside.safetensors"])
def test_an_index_names_files_of_its_own_folder_only(name, tmp_path):
    """What an index names is read and, when training resumes, deleted: it must not lead out of the folder."""
    model, folder = backbone(), tmp_path / "snapshots"
    trained(model, folder)
    (tmp_path / "outside.safetensors").write_bytes(b"mine")
    whole = read_json(folder / INDEX_NAME)
    entries = [{**whole["snapshots"][0], "file": name, "step": 99}, *whole["snapshots"][1:]]
    (folder / INDEX_NAME).write_text(json.dumps({**whole, "snapshots": entries}))
    for use in (lambda: vog_of(model, folder), lambda: SnapshotWriter(folder, model).continue_from(20)):
        with pytest.raises(SnapshotError, match="is not the name of a file in this folder"):
            use()
    assert (tmp_path / "outside.safetensors").read_bytes() == b"mine"
    index = tmp_path / "checkpoint" / "model.safetensors.index.json"
    index.parent.mkdir()
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(SnapshotError, match="is not the name of a file in this folder"):
        open_snapshots([index.parent, folder], spool=tmp_path)


def test_a_truncated_shard_is_refused(tmp_path):
    """One of several files of a checkpoint: the snapshot and the file are named."""
    model = models.mlp().model
    state = model.state_dict()
    saved(tmp_path, {0: state})
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    shards = {name: f"model-{i:05d}-of-{len(state):05d}.safetensors" for i, name in enumerate(state)}
    for name, shard in shards.items():
        save_file({name: state[name] + 1}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    vog_of(model, tmp_path)
    torn = folder / shards["out.weight"]
    torn.write_bytes(torn.read_bytes()[:-4])
    with pytest.raises(SnapshotError, match=rf"'checkpoint-1' \(.*{torn.name}\) cannot be read"):
        vog_of(model, tmp_path)


def test_the_index_says_what_was_stored(tmp_path):
    """Format, steps, digests and the digests of what is frozen, in JSON."""
    model = backbone()
    trained(model, tmp_path)
    index = json.loads((tmp_path / INDEX_NAME).read_text())
    assert index["frozen"] == {name: tensor_digest(model.state_dict()[name]) for name in ("first.weight", "first.bias")}
    assert [entry["step"] for entry in index["snapshots"]] == [10, 20, 30]
    assert index["store"] == "trainable"


# --- lending --------------------------------------------------------------------------------------------------------


def test_a_lent_model_gets_its_own_tensors_back(tmp_path):
    """Weights, statistics and buffers that are not stored come back in the same memory, also after an error."""
    model = backbone().bfloat16()
    _, states = trained(model, tmp_path)
    found = open_snapshots(tmp_path, spool=tmp_path)
    own = {name: (value.data_ptr(), value.clone()) for name, value in model.state_dict().items()}
    scale = model.scale
    expected = {name: value.float() if value.is_floating_point() else value for name, value in states[0].items()}

    def interrupt(weights):
        weights.load(found.snapshots[0])
        assert_close(dict(model.state_dict()), expected, rtol=0, atol=0)
        assert model.scale.dtype == torch.float32
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), temporary_weights(model, found.frozen, cast_up=True) as lent:
        interrupt(lent)
    after = {name: (value.data_ptr(), value.clone()) for name, value in model.state_dict().items()}
    assert_close(after, own, rtol=0, atol=0)
    assert (model.scale is scale, model.scale.dtype) == (True, torch.bfloat16)


def test_digests_tell_values_shapes_and_dtypes_apart():
    """Equal content has one digest whatever its strides; a bit, a shape or a dtype makes another."""
    values = torch.arange(6.0).reshape(2, 3)
    assert tensor_digest(values) == tensor_digest(values.T.contiguous().T)
    others = [values.reshape(3, 2), values.double(), values.nextafter(values + 1), torch.zeros(0), torch.tensor(0.0)]
    digests = {tensor_digest(other) for other in (values, *others)}
    assert len(digests) == len(others) + 1
    assert tensor_digest(values.bfloat16()) != tensor_digest(values.half())


@pytest.mark.parametrize(
    ("names", "ordered"),
    [
        (["epoch_0", "epoch_2", "epoch_10"], ["epoch_0", "epoch_2", "epoch_10"]),
        (["step_5", "step_100", "step_20"], ["step_5", "step_20", "step_100"]),
        (["checkpoints/checkpoint_1", "checkpoints/checkpoint_12"], ["checkpoint_1", "checkpoint_12"]),
        (["checkpoint-9", "checkpoint-10", "epoch_1"], ["checkpoint-9", "checkpoint-10"]),
    ],
)
def test_checkpoints_of_accelerate_are_taken_in_the_order_of_their_numbers(tmp_path, names, ordered):
    """Folders of epochs, of steps and of automatic naming, the first of two models; Trainer's own come first."""
    model = models.mlp().model
    for name in names:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        save_file(model.state_dict(), folder / "model.safetensors")
        save_file({"other": torch.zeros(1)}, folder / "model_1.safetensors")
        (folder / "optimizer.bin").write_bytes(b"pickled")
    found = open_folder(tmp_path).snapshots
    assert [snapshot.name for snapshot in found] == ordered
    assert {snapshot.files[0].name for snapshot in found} == {"model.safetensors"}


def test_what_accelerate_saves_is_scored(tmp_path):
    """save_state after each epoch: the scores of the state dicts at these moments."""
    case = models.mlp()
    accelerator = Accelerator(cpu=True)
    model = accelerator.prepare(case.model)
    states = models.perturbed_states(case.model, 3)
    for epoch, state in enumerate(states):
        case.model.load_state_dict(state)
        accelerator.save_state(str(tmp_path / f"epoch_{epoch}"))
    accelerator.free_memory()
    rows = [{**row, "labels": label} for row, label in zip(case.rows, case.labels, strict=True)]
    scorer = VoGScorer(model, progress=False)
    found = scorer.score(rows, tmp_path).column("vog")
    np.testing.assert_array_equal(found, scorer.score(rows, zip("abc", states, strict=True)).column("vog"))
    assert found.min() > 0


def test_epochs_beside_steps_are_refused(tmp_path):
    """Two countings have no common order: the message names both."""
    for name in ("epoch_0", "step_5"):
        (tmp_path / name).mkdir()
    with pytest.raises(SnapshotError, match=r"of several kinds \(.*(epoch|step)\); pass a list"):
        open_folder(tmp_path)


@pytest.mark.parametrize(
    "name", ["checkpoint-1.pth.tar", "epoch_1.pth", "epoch_1/pytorch_model.bin", "step_3/last.ckpt"]
)
def test_pickled_checkpoints_are_refused_with_the_way_to_pass_them(tmp_path, name):
    """The message has pairs for torch and for timm, and both read what was refused."""
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    torch.save({"state_dict": models.mlp().model.state_dict()}, path)
    with pytest.raises(SnapshotError, match=r"pairs \(name, state_dict\).*torch\.load.*timm\.models\.load_state_dict"):
        open_folder(tmp_path)
    if name.endswith(".tar"):
        state = pytest.importorskip("timm").models.load_state_dict(path)
        assert state.keys() == models.mlp().model.state_dict().keys()
