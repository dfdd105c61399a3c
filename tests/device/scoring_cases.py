"""Scoring on the simulated device; `test_simulated_device` runs these cases."""

import copy
import logging

import live_cases
import models
import numpy as np
import pytest
import simulated_device
import torch
from datasets import Dataset
from simulated_device import DEVICE

from vog_hf import VoGConfig
from vog_hf.errors import MemoryBudgetError
from vog_hf.metric.heat_maps import pooled_maps
from vog_hf.metric.host_copies import host_copies
from vog_hf.runtime.memory import free_memory
from vog_hf.scoring.forward_only import companions
from vog_hf.scoring.replay import Replay
from vog_hf.scoring.scorer import VoGScorer

BATCH, SNAPSHOTS = 15, 3
N_BATCHES = -(-live_cases.N // BATCH)
COMPARISONS = SNAPSHOTS  # of folded weights: one for each
BOTH = VoGConfig(target=("logit", "loss"))
FINITE, RESULTS, COMPARED = (
    "scoring/skipped_rows.py:check_finite",
    "metric/host_copies.py:host_copies",
    "scoring/fast_path.py:difference",
)
OUT_OF_MEMORY = "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call"


@pytest.fixture(autouse=True)
def device():
    """The device, which has not been asked for anything."""
    installed = simulated_device.install()
    installed.reset()
    yield installed
    installed.reset()


@pytest.fixture
def replayed(device, monkeypatch):
    """Counts only what the blocks ask for, and not the dry run before."""
    score_blocks = Replay.score_blocks

    def counted(replay):
        device.waits.clear()
        device.transfers.clear()
        n_rows = score_blocks(replay)
        device.replay_waits, device.replay_transfers = device.waits.copy(), device.transfers.copy()
        return n_rows

    monkeypatch.setattr(Replay, "score_blocks", counted)
    return device


def score(name, where, *, config=BOTH, rows=None, **options):
    """Scores of a small model from four snapshots, which differ in nothing but where the model is."""
    case, states = live_cases.case_of(name, SNAPSHOTS)
    model = copy.deepcopy(case.model).to(where)
    named = [(f"epoch-{k}", state) for k, state in enumerate(states)]
    scorer = VoGScorer(model, config=config, batch_size=BATCH, progress=False, **options)
    scores = scorer.score(live_cases.labeled(case) if rows is None else rows, named, collate_fn=models.collate)
    assert {str(tensor.device) for tensor in model.state_dict().values()} == {where}
    return scores


def of_ours(waits):
    """Waits without those that models of transformers ask for: BERT looks at its mask in every pass."""
    return {place: n for place, n in waits.items() if not place.startswith("transformers/")}


def assert_same(scores, expected):
    """Every column, trajectory and map; attention is computed in another order on a device."""
    assert scores.column_names == expected.column_names
    for name in scores.column_names:
        found, wanted = scores.column(name), expected.column(name)
        if found.dtype.kind in "iuU":
            np.testing.assert_array_equal(found, wanted, err_msg=name)
        else:
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5, err_msg=name)
    for name in expected.trajectory_names:
        np.testing.assert_allclose(scores.trajectory(name), expected.trajectory(name), rtol=1e-4, atol=1e-5)
    for row in range(len(expected)):
        np.testing.assert_allclose(scores.heat_map(row), expected.heat_map(row), rtol=2e-3, atol=1e-6)


def test_the_device_refuses_mixed_devices_and_counts_what_the_host_waits_for(device):
    """Tensors of two devices are an error; `item`, copies to the host and shapes of values are waited for."""
    there, here = torch.ones(3, device=DEVICE), torch.ones(3)
    with pytest.raises(RuntimeError, match="same device"):
        there + here
    with pytest.raises(RuntimeError, match="same device"):
        torch.where(there > 0, there, here)
    assert not device.waits
    assert (there + 1).sum().item() == 6
    assert there[there > 0].cpu().tolist() == [1, 1, 1]
    assert sum(device.waits.values()) == 3


def test_a_model_on_the_device_is_copied_with_its_memory():
    """Weights, buffers and views of a deep copy are others than those of the model."""
    model = torch.nn.BatchNorm1d(3).to(DEVICE)
    copied = copy.deepcopy(model)
    copied.running_mean += 2
    assert copied.running_mean.cpu().tolist() == [2, 2, 2]
    assert model.running_mean.cpu().tolist() == [0, 0, 0]
    transposed = torch.arange(6, device=DEVICE).reshape(2, 3).T
    assert copy.deepcopy(transposed).cpu().tolist() == [[0, 3], [1, 4], [2, 5]]


@pytest.mark.parametrize("name", ["conv_net", pytest.param("bert", marks=pytest.mark.slow)])
def test_replay_waits_once_per_snapshot_and_once_per_batch(replayed, name):
    """Two targets, companions, maps, masks: no batch of a snapshot waits, but to compare folded weights once."""
    scores = score(name, DEVICE)
    compared = {COMPARED: COMPARISONS} if name == "conv_net" else {}
    assert of_ours(replayed.replay_waits) == {FINITE: SNAPSHOTS, RESULTS: N_BATCHES, **compared}
    assert_same(scores, score(name, "cpu"))


@pytest.mark.slow
def test_blocks_are_read_ahead_and_snapshots_stay_on_the_device(replayed):
    """Of several blocks each waits once per snapshot; weights are copied to the device for the first one only."""
    scores = score("conv_net", DEVICE, memory_budget=2 * BATCH * 3500)
    n_blocks = replayed.replay_waits[FINITE] // SNAPSHOTS
    assert n_blocks > 1
    assert of_ours(replayed.replay_waits) == {FINITE: SNAPSHOTS * n_blocks, RESULTS: N_BATCHES, COMPARED: COMPARISONS}
    copies = {key: n for key, n in replayed.replay_transfers.items() if key[0] == "to device"}
    threads = {thread for (_, place, thread) in copies if place == "gradients/model_inputs.py:to_device"}
    assert all(thread.startswith("vog-prefetch") for thread in threads)
    n_tensors = len(live_cases.case_of("conv_net", SNAPSHOTS)[1][0])
    assert sum(n for (_, place, _), n in copies.items() if place.endswith("loaded_weights.py:_put")) == (
        SNAPSHOTS * n_tensors
    )
    assert_same(scores, score("conv_net", "cpu"))


@pytest.mark.slow
def test_texts_in_the_order_of_their_lengths(replayed):
    """A dataset of token ids, sorted by length within a block, has the scores of the CPU by row."""
    case, _ = live_cases.case_of("bert", SNAPSHOTS)
    lists = [{key: torch.as_tensor(value).tolist() for key, value in row.items()} for row in live_cases.labeled(case)]
    rows = Dataset.from_list(lists)
    scores = score("bert", DEVICE, rows=rows)
    assert of_ours(replayed.replay_waits) == {FINITE: SNAPSHOTS, RESULTS: N_BATCHES}
    assert_same(scores, score("bert", "cpu", rows=rows))


@pytest.mark.slow
def test_rows_without_labels_take_the_last_prediction(replayed):
    """Predictions of the last snapshot are made, and used, on the device."""
    case, _ = live_cases.case_of("conv_net", SNAPSHOTS)
    rows = live_cases.labeled(case, [-1 if i % 3 == 0 else label for i, label in enumerate(case.labels)])
    scores = score("conv_net", DEVICE, rows=rows)
    assert of_ours(replayed.replay_waits) == {FINITE: SNAPSHOTS, RESULTS: N_BATCHES, COMPARED: COMPARISONS}
    assert_same(scores, score("conv_net", "cpu", rows=rows))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["conv_net", "bert"])
def test_live_waits_once_per_snapshot(device, name):
    """Moments of all rows on the device are those on the CPU, also after they were saved and restored there."""
    found = {}
    for where in ("cpu", DEVICE):
        case, states = live_cases.case_of(name, SNAPSHOTS)
        model = copy.deepcopy(case.model).to(where)
        scorer = VoGScorer(model, config=BOTH, batch_size=BATCH, progress=False)
        reader = scorer.reader(live_cases.labeled(case), collate_fn=models.collate)
        live = scorer.live(reader, scorer.plan(reader), SNAPSHOTS)
        device.waits.clear()
        live_cases.train(model, live, states)
        if where == DEVICE:
            assert device.waits.pop(COMPARED, 0) in (0, COMPARISONS)
            assert of_ours(device.waits) == {FINITE: SNAPSHOTS}
        found[where] = live.finish()
    assert_same(found[DEVICE], found["cpu"])


@pytest.mark.slow
def test_live_moments_continue_on_the_device(device, tmp_path):
    """Moments that were saved are restored to the device of the model."""
    case, states = live_cases.case_of("bert", SNAPSHOTS)
    model = copy.deepcopy(case.model).to(DEVICE)
    scorer = VoGScorer(model, batch_size=BATCH, progress=False)
    reader = scorer.reader(live_cases.labeled(case), collate_fn=models.collate)
    plan = scorer.plan(reader)
    whole, begun = scorer.live(reader, plan, SNAPSHOTS), scorer.live(reader, plan, SNAPSHOTS)
    live_cases.train(model, whole, states)
    live_cases.train(model, begun, states[:2])
    begun.save(tmp_path / "moments")
    resumed = scorer.live(reader, plan, SNAPSHOTS)
    resumed.restore(tmp_path / "moments")
    for k, state in enumerate(states[2:], start=2):
        model.load_state_dict(state)
        resumed.update(f"epoch-{k}", step=10 * k)
    live_cases.assert_identical(resumed.finish(), whole.finish())


@pytest.mark.slow
def test_companions_wait_once_per_snapshot(device):
    """Forward passes alone: once for the first rows, then per snapshot, and for the results of each batch."""
    case, states = live_cases.case_of("conv_net", SNAPSHOTS)
    tables = {}
    for where in ("cpu", DEVICE):
        tables[where] = companions(
            copy.deepcopy(case.model).to(where),
            live_cases.labeled(case),
            [(f"epoch-{k}", state) for k, state in enumerate(states)],
            collate_fn=models.collate,
            batch_size=BATCH,
        )
    assert device.waits["scoring/forward_only.py:_require_finite"] == SNAPSHOTS
    assert device.waits[RESULTS] == N_BATCHES
    np.testing.assert_allclose(tables[DEVICE].to_numpy(), tables["cpu"].to_numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_pass_that_does_not_fit_is_halved(device, caplog):
    """Activations of a whole batch do not fit, those of half of it do: the same scores, with a warning."""
    largest_input = BATCH * 3 * 8 * 8 * 4
    device.has_room = lambda nbytes, _: nbytes <= largest_input  # four channels of activations are more than three
    with caplog.at_level(logging.WARNING, logger="vog_hf"):
        scores = score("conv_net", DEVICE)
    device.reset()
    assert f"out of memory with {BATCH} rows per pass; retrying with {BATCH // 2}" in caplog.text
    assert_same(scores, score("conv_net", "cpu"))


@pytest.mark.slow
def test_moments_that_do_not_fit_are_computed_for_half_of_the_batches(device, caplog):
    """Where moments of several batches do not fit, each half of the batches goes over all snapshots."""
    tries = []

    def has_room(_, place):
        if place != "metric/moments.py:__init__":
            return True
        tries.append(place)
        return len(tries) != 40  # the last of the last batch: eight each for the dry run and four batches

    device.has_room = has_room
    with caplog.at_level(logging.WARNING, logger="vog_hf"):
        scores = score("conv_net", DEVICE)
    assert f"out of memory with the moments of {N_BATCHES} batches; retrying with half of them" in caplog.text
    device.reset()
    assert_same(scores, score("conv_net", "cpu"))


@pytest.mark.slow
def test_a_lack_of_memory_that_is_reported_late_is_one(device, caplog):
    """CUDA reports what a kernel lacked at a later call, here when the host asks whether gradients are finite."""
    failures = [torch.AcceleratorError(OUT_OF_MEMORY)]

    def before_wait(place):
        if place == FINITE and failures:
            raise failures.pop()

    device.before_wait = before_wait
    with caplog.at_level(logging.WARNING, logger="vog_hf"):
        scores = score("conv_net", DEVICE)
    assert "retrying with half of them" in caplog.text
    device.reset()
    assert_same(scores, score("conv_net", "cpu"))


@pytest.mark.slow
def test_moments_that_never_fit_are_an_error_with_advice(device):
    """If not even one batch has room for its moments, the error names the batch size."""
    armed = []

    def before_wait(place):
        armed.append(place == COMPARED)

    device.before_wait = before_wait
    # The dry run's moments fit; those of the blocks, after the first comparison of weights, do not.
    device.has_room = lambda _, place: not (any(armed) and place == "metric/moments.py:__init__")
    with pytest.raises(MemoryBudgetError, match=r"a batch of \d+ rows and its moments .* smaller batch_size"):
        score("conv_net", DEVICE)


def test_copies_to_the_host_are_one_for_all_dtypes(device):
    """Tensors of any dtype, shape and layout come back as they are, in one transfer."""
    made = {
        "bool": torch.tensor([True, False, True]),
        "int32": torch.arange(5, dtype=torch.int32),
        "float64": torch.randn(3, 2, dtype=torch.float64),
        "float16": torch.randn(7).half(),
        "transposed": torch.randn(4, 3).T,
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
    }
    copies = host_copies({name: value.to(DEVICE) for name, value in made.items()})
    assert sum(device.waits.values()) == 1
    torch.testing.assert_close(copies, made, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(3, 40, 50), (3, 1500)], ids=str)
def test_padded_maps_are_cut_out_on_the_host(device, shape):
    """Cutting boxes out of masks on the device would wait for it several times a row."""
    deviation, mask = torch.rand(shape), torch.zeros(shape, dtype=torch.bool)
    for row, length in enumerate((11, 30, 37)):
        mask[row, ..., :length] = True
    maps = pooled_maps(deviation.to(DEVICE), mask.to(DEVICE))
    assert sum(device.waits.values()) == 1
    expected = pooled_maps(deviation, mask)
    np.testing.assert_array_equal(maps.values, expected.values)
    np.testing.assert_array_equal(maps.shapes, expected.shapes)


def test_the_free_memory_is_that_of_the_device(device):
    """A device that reports its memory is asked."""
    assert free_memory(torch.device(DEVICE)) == simulated_device.MEMORY


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(models.CASES))
def test_every_kind_of_model(device, name):
    """Scores of each kind of model, on the device and on the CPU."""
    case = models.CASES[name]()
    states = [(f"epoch-{k}", state) for k, state in enumerate(models.perturbed_states(case.model, 3))]
    rows = live_cases.labeled(case)
    found = [
        VoGScorer(copy.deepcopy(case.model).to(where), batch_size=3, progress=False).score(
            rows, states, collate_fn=models.collate
        )
        for where in (DEVICE, "cpu")
    ]
    assert_same(*found)
