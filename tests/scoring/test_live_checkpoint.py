import json
import shutil
from functools import partial

import pytest
from live_cases import assert_identical, case_of, labeled, start, train
from trainers import AtStep, WeightsByStep, augmented, digits, plain, trained
from trainings import PowerCutError, assert_same_scores, cut, pixel_rows, scores_of, steps_of

from vog_hf.config import VoGConfig
from vog_hf.errors import ConfigError, OutputFolderError
from vog_hf.runtime.files import read_json
from vog_hf.scoring.live_checkpoint import STATE_NAME, read_header
from vog_hf.trainer.callback import VoGCallback

BOTH_TARGETS = VoGConfig(target=("logit", "loss"))


# --- moments on disk ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["conv_net", "bert"])
@pytest.mark.parametrize("seen", [0, 1, 2, 4, 6, 7])
def test_saved_moments_go_on_bit_by_bit(name, seen, tmp_path):
    """Saved after any number of snapshots and restored in a new run, the scores are those of a run without a break."""
    case, states = case_of(name)
    model, whole = start(case, config=BOTH_TARGETS)
    train(model, whole, states)
    model, first = start(case, config=BOTH_TARGETS)
    train(model, first, states[:seen])
    first.save(tmp_path / "state")
    model, second = start(case, config=BOTH_TARGETS)
    second.restore(tmp_path / "state")
    assert second.n_snapshots == seen
    for k, state in enumerate(states[seen:], start=seen):
        model.load_state_dict(state)
        second.update(f"epoch-{k}", step=10 * k)
    assert second.steps == whole.steps
    assert_identical(second.finish(), whole.finish())


def test_many_small_files_hold_what_one_holds(tmp_path, monkeypatch):
    """Moments are written in parts, so that saving needs little memory; the parts together are the whole."""
    case, states = case_of("conv_net")
    model, live = start(case)
    train(model, live, states[:3])
    live.save(tmp_path / "one")
    monkeypatch.setattr("vog_hf.scoring.live_checkpoint.PART_BYTES", 1)
    live.save(tmp_path / "several")
    assert len(list((tmp_path / "one").glob("*.safetensors"))) == 1
    assert len(list((tmp_path / "several").glob("*.safetensors"))) == 8
    finished = []
    for folder in ("one", "several"):
        _, again = start(case)
        again.restore(tmp_path / folder)
        finished.append(again.finish())
    assert_identical(*finished)


def test_saving_leaves_the_moments_as_they_are(tmp_path):
    """A run that saves in between scores what a run that does not save scores."""
    case, states = case_of("conv_net")
    finished = []
    for saves in (False, True):
        model, live = start(case)
        for k, state in enumerate(states):
            model.load_state_dict(state)
            live.update(f"epoch-{k}", step=10 * k)
            if saves:
                live.save(tmp_path / "state")
        finished.append(live.finish())
    assert_identical(*finished)


def saved(tmp_path):
    """The state of a run after three of seven snapshots."""
    case, states = case_of("conv_net")
    model, live = start(case)
    train(model, live, states[:3])
    live.save(tmp_path / "state")
    return case, tmp_path / "state"


def test_a_state_that_is_not_whole_is_refused(tmp_path):
    """Without its header, which is written last, or with a file cut short, a state does not count; whole it does."""
    case, folder = saved(tmp_path)
    _, live = start(case)
    (folder / STATE_NAME).rename(tmp_path / "header")
    with pytest.raises(OutputFolderError, match="holds no moments"):
        live.restore(folder)
    (tmp_path / "header").rename(folder / STATE_NAME)
    live.restore(folder)
    assert live.n_snapshots == 3


@pytest.mark.parametrize("damage", ["cut short", "one flipped bit", "gone"])
def test_a_damaged_state_is_refused(damage, tmp_path):
    """A file that is not what was written would be a wrong score; its digest finds even one flipped bit."""
    case, folder = saved(tmp_path)
    _, live = start(case)
    part = next(folder.glob("*.safetensors"))
    content = part.read_bytes()
    if damage == "gone":
        part.unlink()
    else:
        part.write_bytes(
            content[:-100] if damage == "cut short" else content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]
        )
    with pytest.raises(OutputFolderError, match=r"is missing or damaged: resume from an earlier checkpoint"):
        live.restore(folder)


@pytest.mark.parametrize(
    ("other", "differing"),
    [
        ({"planned": 8}, "planned snapshots"),
        ({"config": VoGConfig(target="loss")}, "config"),
        ({"rows": "shorter"}, "rows"),
    ],
)
def test_moments_of_something_else_are_refused(other, differing, tmp_path):
    """Another schedule, configuration or dataset never takes over; the same one does, whatever its batch size."""
    case, folder = saved(tmp_path)
    if other.get("rows"):
        other = {"rows": labeled(case)[:-1]}
    _, live = start(case, **other)
    with pytest.raises(OutputFolderError, match=rf"moments from a different run \(it differs in .*{differing}.*\)"):
        live.restore(folder)
    _, live = start(case, batch_size=9)
    live.restore(folder)
    assert live.n_snapshots == 3


def test_moments_and_scores_have_formats_of_their_own(tmp_path, monkeypatch):
    """A new format of scores leaves saved moments readable to it; another format of moments is refused."""
    monkeypatch.setattr("vog_hf.scoring.run_manifest.FORMAT", 7)
    case, folder = saved(tmp_path)
    _, live = start(case)
    live.restore(folder)
    assert live.n_snapshots == 3
    header = read_json(folder / STATE_NAME)
    assert (header["format"], header["state format"]) == (7, 1)
    (folder / STATE_NAME).write_text(json.dumps({**header, "state format": 2}))
    with pytest.raises(OutputFolderError, match="has format 2, this version reads 1; train again"):
        live.restore(folder)


# --- next to the Trainer's checkpoints -------------------------------------------------------------------------------


def live_callback(**options):
    """Five snapshots of twelve steps, scored live."""
    return VoGCallback(pixel_rows(), collect="live", **{"snapshots": [2, 4, 7, 9, 12], **options})


@pytest.mark.parametrize(
    ("saving", "cut_at", "checkpoint"),
    [
        ({"save_strategy": "epoch"}, 10, 4),  # back to one that is not the last
        ({"save_strategy": "epoch"}, 10, 8),
        ({"save_strategy": "steps", "save_steps": 3}, 8, 6),
        ({"save_strategy": "steps", "save_steps": 1}, 2, 1),  # before the first snapshot
        ({"save_strategy": "steps", "save_steps": 1}, 12, 11),
    ],
)
def test_a_resumed_live_training_is_scored_as_if_it_had_never_stopped(saving, cut_at, checkpoint, tmp_path):
    """From any checkpoint the scores are equal bit by bit, with random augmentation where Trainer itself repeats it."""
    transform = augmented if saving["save_strategy"] == "epoch" else plain  # in mid-epoch Trainer draws other crops
    options = {**saving, "rows": digits().with_transform(transform)}
    whole = scores_of(tmp_path / "whole", live_callback(), **options)
    folder = tmp_path / "cut"
    with pytest.raises(PowerCutError):
        trained(folder, [live_callback(), AtStep(cut_at, cut)], **options)
    again = live_callback()
    trained(folder, [again], resume=str(folder / f"checkpoint-{checkpoint}"), **options)
    assert steps_of(again.scores) == [2, 4, 7, 9, 12]
    assert_identical(again.scores, whole)


@pytest.mark.parametrize("collect", ["replay", "live"])
def test_a_run_cut_off_after_its_last_checkpoint_gets_its_last_snapshot(collect, tmp_path):
    """Trainer has no step left to make, so the snapshot of the last step is taken when it resumes."""
    options = {"save_strategy": "steps", "save_steps": 12}
    whole = scores_of(tmp_path / "whole", VoGCallback(pixel_rows(), collect=collect, snapshots="epoch"), **options)

    class CutOnSave(AtStep):
        def on_save(self, args, state, control, **kwargs):
            raise PowerCutError

    folder = tmp_path / "cut"
    vog = VoGCallback(pixel_rows(), collect=collect, snapshots="epoch")
    with pytest.raises(PowerCutError):
        trained(folder, [vog, CutOnSave(0, cut)], **options)
    again = VoGCallback(pixel_rows(), collect=collect, snapshots="epoch")
    trained(folder, [again], resume=str(folder / "checkpoint-12"), **options)
    assert steps_of(again.scores) == [4, 8, 12]
    assert_same_scores(again.scores, whole, tolerance=0)


def test_splits_are_resumed_each_with_its_own_moments(tmp_path):
    """A DatasetDict continues split by split."""
    splits = {"train": pixel_rows(), "extra": digits(20, start=100).with_transform(plain)}

    def vog():
        return VoGCallback(splits, collect="live", snapshots="epoch")

    whole = scores_of(tmp_path / "whole", vog(), save_strategy="epoch")
    with pytest.raises(PowerCutError):
        trained(tmp_path / "cut", [vog(), AtStep(10, cut)], save_strategy="epoch")
    again = vog()
    trained(tmp_path / "cut", [again], resume=True, save_strategy="epoch")
    for split in splits:
        assert_identical(again.scores[split], whole[split])


def test_moments_are_kept_only_of_checkpoints_that_are_there(tmp_path):
    """With save_total_limit the moments go with their checkpoints; a new training begins without any."""
    trained(tmp_path, [live_callback()], save_strategy="steps", save_steps=3, save_total_limit=1)
    kept = [path.name for path in (tmp_path / "_vog" / "live").iterdir()]
    assert {name[:14] for name in kept} == {"step-000000012"}
    assert all(read_header(tmp_path / "_vog" / "live" / name)["rows"] == 64 for name in kept)
    trained(tmp_path, [live_callback()], save_strategy="no")
    assert not (tmp_path / "_vog" / "live").exists()


def test_a_checkpoint_without_moments_is_refused_before_a_step_is_made(tmp_path):
    """The steps that can be resumed are named; replay, or a plan whose first snapshot is still to come, is accepted."""
    trained(tmp_path, [], save_strategy="epoch", num_train_epochs=1)
    weights = WeightsByStep()
    resumed = partial(trained, tmp_path, resume=str(tmp_path / "checkpoint-4"), num_train_epochs=2)
    with pytest.raises(ConfigError, match=r"cannot resume at step 4: .*only of steps \[\].*use collect='replay'"):
        resumed([VoGCallback(pixel_rows(), collect="live"), weights])
    assert weights.weights == {}
    for collect in ("replay", "live"):
        vog = VoGCallback(pixel_rows(), collect=collect, snapshots=[6, 8])
        resumed([vog])
        assert steps_of(vog.scores) == [6, 8]


def test_another_number_of_epochs_is_refused_before_a_step_and_names_replay(tmp_path):
    """Live moments know the number of snapshots in advance; the error says what takes another one."""
    options = {"save_strategy": "epoch"}
    trained(tmp_path, [VoGCallback(pixel_rows(), collect="live", snapshots="epoch")], num_train_epochs=2, **options)
    weights, longer = WeightsByStep(), VoGCallback(pixel_rows(), collect="live", snapshots="epoch")
    with pytest.raises(OutputFolderError, match=r"differs in planned snapshots.*collect='replay' if"):
        trained(tmp_path, [longer, weights], resume=str(tmp_path / "checkpoint-4"), num_train_epochs=3, **options)
    assert weights.weights == {}


def test_snapshots_that_are_gone_are_named_when_training_resumes(tmp_path, caplog):
    """Replay continues with the coming snapshots and says which it lacks; with all of them it says nothing."""
    options = {"save_strategy": "epoch", "num_train_epochs": 4}
    with pytest.raises(PowerCutError):
        trained(tmp_path, [VoGCallback(pixel_rows(), snapshots="epoch"), AtStep(10, cut)], **options)
    trained(tmp_path, [VoGCallback(pixel_rows(), snapshots="epoch")], resume=str(tmp_path / "checkpoint-8"), **options)
    assert "no snapshots of steps" not in caplog.text
    shutil.rmtree(tmp_path / "_vog")
    vog = VoGCallback(pixel_rows(), snapshots="epoch")
    trained(tmp_path, [vog], resume=str(tmp_path / "checkpoint-8"), **options)
    assert "no snapshots of steps 4 in" in caplog.text
    assert steps_of(vog.scores) == [8, 12, 16]


@pytest.mark.parametrize("failing", ["save_state", "read_header"])
def test_moments_that_cannot_be_saved_cost_no_scores(failing, tmp_path, monkeypatch, caplog):
    """A failure next to a checkpoint is logged, and training and scoring continue."""

    def full(*args, **kwargs):
        raise OutputFolderError("no space left")

    monkeypatch.setattr(f"vog_hf.scoring.live.{failing}", full)
    vog = live_callback()
    trained(tmp_path, [vog], save_strategy="epoch")
    assert len(vog.scores) == 64
    assert ("saving the moments of step 4 failed" in caplog.text) == (failing == "save_state")


def test_a_second_training_in_a_folder_is_refused_while_the_first_goes_on(tmp_path, monkeypatch):
    """Neither takes the other's snapshots; once the first has ended, or crashed, the folder can be had."""
    monkeypatch.setattr("vog_hf.runtime.files.LOCK_PATIENCE", 0.0)
    monkeypatch.setattr(
        "vog_hf.trainer.run_folder._locks", {}
    )  # as in another process, which knows nothing of the first
    refused = []

    def second(model, control):
        held = dict(monkeypatch_held())
        try:
            monkeypatch.setattr("vog_hf.trainer.run_folder._locks", {})
            trained(tmp_path / "second", [VoGCallback(pixel_rows(), output_dir=tmp_path / "first" / "_vog")])
        except OutputFolderError as error:
            refused.append(str(error))
        finally:
            monkeypatch.setattr("vog_hf.trainer.run_folder._locks", held)

    def monkeypatch_held():
        import vog_hf.trainer.run_folder

        return vog_hf.trainer.run_folder._locks

    with pytest.raises(PowerCutError):
        trained(tmp_path / "first", [VoGCallback(pixel_rows()), AtStep(2, second), AtStep(5, cut)])
    assert len(refused) == 1
    assert "is in use by another run" in refused[0]
    again = VoGCallback(pixel_rows())
    trained(tmp_path / "first", [again])
    assert len(again.scores) == 64
