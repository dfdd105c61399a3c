import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import reference_dynamics
from torch.testing import assert_close

from vog_hf.errors import ConfigError
from vog_hf.metric.training_dynamics import TrainingDynamics, classification_observation, training_dynamics

N = 53
COLUMNS = ("loss", "confidence", "variability", "correctness", "forgetting", "margin", "el2n")


def drawn(n_snapshots, n_rows, n_classes, *, seed=0, scale=2.0):
    """Random logits ``[snapshots, rows, classes]`` and labels."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(n_snapshots, n_rows, n_classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(n_classes, (n_rows,), generator=generator)


def streamed(logits, labels):
    """The columns, one snapshot at a time."""
    dynamics = TrainingDynamics()
    for snapshot in logits:
        dynamics.update(classification_observation(snapshot, labels))
    return dynamics.columns()


def over_snapshots(columns):
    """The columns without those of the last snapshot alone."""
    return {name: values for name, values in columns.items() if not name.startswith("prediction")}


def row_of(**states):
    """Logits of one row with two classes and label 0: right, wrong or tied at each snapshot."""
    values = {"right": [2.0, 0.0], "wrong": [0.0, 1.0], "tied": [1.0, 1.0]}
    return torch.tensor([[values[state]] for state in states["over_time"]], dtype=torch.float64)


@given(
    n_snapshots=st.integers(1, 7),
    n_classes=st.integers(2, 5),
    seed=st.integers(0, 2**32),
    scale=st.sampled_from([0.0, 1.0, 30.0]),
)
def test_the_definition_is_the_oracles(n_snapshots, n_classes, seed, scale):
    """`training_dynamics` agrees with plain loops over rows and snapshots, from equal logits to saturated ones."""
    logits, labels = drawn(n_snapshots, 11, n_classes, seed=seed, scale=scale)
    found = training_dynamics(logits, labels)
    expected = reference_dynamics(logits.transpose(0, 1).numpy(), labels.tolist())
    assert set(found) == set(COLUMNS)
    assert_close({name: found[name].double().numpy() for name in COLUMNS}, {n: expected[n] * 1.0 for n in COLUMNS})


@given(
    n_snapshots=st.integers(1, 7),
    n_classes=st.integers(2, 5),
    seed=st.integers(0, 2**32),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_streaming_gives_the_definition(n_snapshots, n_classes, seed, dtype):
    """One snapshot at a time, `TrainingDynamics` comes to the columns of `training_dynamics`, in either precision."""
    logits, labels = drawn(n_snapshots, 11, n_classes, seed=seed)
    found, expected = streamed(logits.to(dtype), labels), training_dynamics(logits.to(dtype), labels)
    assert_close(over_snapshots(found), expected, atol=1e-6 if dtype == torch.float32 else 1e-12, rtol=1e-5)
    assert torch.equal(found["prediction"], logits[-1].argmax(-1))
    of_last = torch.softmax(logits[-1].to(dtype), -1).amax(-1)
    assert_close(found["prediction_probability"], of_last, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("columns", [training_dynamics, streamed])
@pytest.mark.parametrize(
    ("over_time", "forgetting", "correctness"),
    [
        (["right"] * 4, 0, 1.0),
        (["wrong"] * 4, 4, 0.0),  # never learned: above every example that was
        (["right", "wrong", "right", "wrong"], 2, 0.5),
        (["wrong", "right", "wrong", "right"], 1, 0.5),
        (["wrong", "wrong", "wrong", "right"], 0, 0.25),
        (["right", "wrong", "wrong", "wrong"], 1, 0.25),
        (["tied"] * 4, 0, 1.0),  # a tie predicts the first of the tied classes, here the label
    ],
)
def test_forgetting_counts_right_to_wrong_and_the_never_learned(columns, over_time, forgetting, correctness):
    """Each right prediction followed by a wrong one counts; a row that was never right counts as all snapshots."""
    found = columns(row_of(over_time=over_time), torch.tensor([0]))
    assert found["forgetting"].tolist() == [forgetting]
    assert found["correctness"].tolist() == [correctness]


def test_a_tie_is_resolved_to_the_first_class():
    """Of equal logits the first is the prediction; the margin of a tie is 0 whichever label it has."""
    logits = torch.ones(2, 3, dtype=torch.float64)
    found = classification_observation(logits, torch.tensor([0, 1]).repeat(1))
    assert found["prediction"].tolist() == [0, 0]
    assert found["correct"].tolist() == [1, 0]
    assert found["margin"].tolist() == [0, 0]


def test_extreme_logits_give_finite_companions():
    """A probability that underflows has a finite loss: the logarithm is taken before the exponential."""
    found = training_dynamics(torch.tensor([[[-2000.0, 2000.0]], [[2000.0, -2000.0]]]), torch.tensor([0]))
    assert_close(found["loss"], torch.tensor([2000.0]))
    assert found["confidence"].tolist() == [0.5]
    assert found["variability"].tolist() == [0.5]
    assert found["margin"].tolist() == [0.0]
    assert all(bool(values.isfinite().all()) for values in found.values())


def test_a_confidence_that_does_not_change_has_no_variability_when_streamed():
    """Equal logits at every snapshot leave no rounding error behind."""
    logits, labels = drawn(1, N, 3)
    found = streamed(logits.expand(9, -1, -1), labels)
    assert torch.equal(found["variability"], torch.zeros(N, dtype=torch.float64))


def test_the_order_of_snapshots_matters_to_forgetting_only():
    """Time reversed, every mean stays as it was; forgetting is about order."""
    logits, labels = drawn(6, N, 3)
    forwards, backwards = streamed(logits, labels), streamed(logits.flip(0), labels)
    means = [name for name in COLUMNS if name != "forgetting"]
    assert_close([backwards[name] for name in means], [forwards[name] for name in means])
    assert not torch.equal(backwards["forgetting"], forwards["forgetting"])


def test_columns_can_be_read_at_any_time():
    """After k snapshots the columns are those of the first k."""
    logits, labels = drawn(5, N, 3)
    dynamics = TrainingDynamics()
    for k, snapshot in enumerate(logits, start=1):
        dynamics.update(classification_observation(snapshot, labels))
        assert_close(over_snapshots(dynamics.columns()), training_dynamics(logits[:k], labels))


def test_moments_of_an_earlier_version_continue_without_the_probability_of_the_prediction():
    """Their state lacks what only the last snapshot tells; another quantity that is missing is refused."""
    logits, labels = drawn(3, N, 3)
    dynamics = TrainingDynamics()
    dynamics.update(classification_observation(logits[0], labels))
    state = {name: values for name, values in dynamics.state().items() if name != "last.prediction_probability"}
    resumed = TrainingDynamics.from_state(state, 1)
    for snapshot in logits[1:]:
        resumed.update(classification_observation(snapshot, labels))
    assert_close(resumed.columns(), streamed(logits, labels))
    del state["last.loss"]
    with pytest.raises(ConfigError, match="observations must keep their quantities"):
        TrainingDynamics.from_state(state, 1).update(classification_observation(logits[1], labels))


def test_observations_are_not_written_to():
    """Streaming keeps no reference that a later update would change, and changes none of its own."""
    logits, labels = drawn(3, N, 3)
    observations = [classification_observation(snapshot, labels) for snapshot in logits]
    copies = [{name: values.clone() for name, values in observed.items()} for observed in observations]
    dynamics = TrainingDynamics()
    for observed in observations:
        dynamics.update(observed)
    assert_close(observations, copies, rtol=0, atol=0)


def test_quantities_that_a_task_has_not_have_no_column():
    """A regression has a loss and a prediction only; a language model's share of right tokens is never forgotten."""
    regression = TrainingDynamics()
    for value in (1.0, 3.0):
        regression.update({"loss": torch.tensor([value]), "prediction": torch.tensor([-value])})
    assert_close(regression.columns(), {"loss": torch.tensor([2.0]), "prediction": torch.tensor([-3.0])})
    tokens = TrainingDynamics()
    for value in (0.25, 0.75):
        tokens.update({"correct": torch.tensor([value])})
    assert_close(tokens.columns(), {"correctness": torch.tensor([0.5])})


def test_quantities_that_come_and_go_are_refused():
    """A mean over some of the snapshots would pass for one over all."""
    dynamics = TrainingDynamics()
    dynamics.update({"loss": torch.ones(2)})
    with pytest.raises(ConfigError, match=r"first \['loss'\], now \['correct', 'loss'\]"):
        dynamics.update({"loss": torch.ones(2), "correct": torch.ones(2)})
    dynamics.update({"loss": torch.ones(2)})
    assert dynamics.n_snapshots == 2
