"""What keeps `collect="training"` from observing rows is refused before the first step; its neighbor is observed."""

import models
import pytest
import torch
from collected import Noting, case_of, labeled
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from trainers import AtStep, digits, plain, trained

from vog_hf import VoGCallback
from vog_hf.data.numbered_rows import LABELS_KEY
from vog_hf.errors import NotScoredError, VoGError


class Rows:
    """A map-style dataset that fetches several rows at once: as a list, or as a table."""

    def __init__(self, rows, *, as_table=False):
        self.rows, self.as_table = rows, as_table

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, number):
        return self.rows[number]

    def __getitems__(self, numbers):
        rows = [self.rows[number] for number in numbers]
        return {name: [row[name] for row in rows] for name in rows[0]} if self.as_table else rows


class Stream(IterableDataset):
    """The rows without numbers."""

    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


class CustomLoader(Noting):
    """Has a torch loader of its own."""

    def get_train_dataloader(self):
        return DataLoader(self.train_dataset, batch_size=4, collate_fn=models.collate)


class BatchesThemselves(Noting):
    """Has a loader of a dataset that makes its batches itself."""

    def get_train_dataloader(self):
        return DataLoader([models.collate(self.train_dataset[:4])], batch_size=None)


class OnTwoDevices(Noting):
    """Trains as Trainer does where one process has two devices: under DataParallel."""

    def __init__(self, *, args, **options):
        args._n_gpu = 2
        super().__init__(args=args, **options)


class Halved(Noting):
    """Gives the model two rows of each batch, with all that belongs to them."""

    whole = ()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return model(**{name: value if name in self.whole else value[:2] for name, value in inputs.items()}).loss


class HalvedInputs(Halved):
    """Gives the model two rows of each batch, and the numbers of all."""

    whole = ("vog_rows",)


class Unlabeled(Noting):
    """Gives the model no labels, and takes some keys out of the batch."""

    taken = ("labels",)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs["labels"]
        kept = {name: value for name, value in inputs.items() if name not in self.taken}
        return nn.functional.cross_entropy(model(**kept).logits, labels)


class WithoutAnyLabel(Unlabeled):
    """Takes out the labels that travel with the numbers, too."""

    taken = ("labels", LABELS_KEY)


def failing(rows):
    """A collator with a fault."""
    raise ValueError("rows of no known width")


REFUSED = {  # (options, message, options of the neighbor)
    "rows that are fetched as a table": (
        {"rows": lambda rows: Rows(rows, as_table=True)},
        r"one row per number from __getitems__ of Rows, got .* return a list of rows",
        {"rows": Rows},
    ),
    "a collator with a fault": (
        {"collate": failing},
        r"could not collate the first 2 training rows: ValueError: rows of no known width; fix the rows",
        {},
    ),
    "a stream": (
        {"rows": Stream},
        r"needs training rows with numbers, and Stream is a stream; train on a map-style dataset",
        {"rows": Rows},
    ),
    "a loader that makes no batches": (
        {"trainer": BatchesThemselves},
        r"this one has batch_size=None, so that list makes them itself; give the loader a batch size",
        {"trainer": CustomLoader},
    ),
    "DataParallel": (
        {"trainer": OnTwoDevices},
        r"observes one model per process, and DataParallel copies it to 2 devices; start one process per device",
        {},
    ),
    "inputs of a part of the rows": (
        {"trainer": HalvedInputs},
        r"a batch of 5 rows came to the model as 2 examples, and scores need one example per row",
        {"trainer": Halved},
    ),
    "no label at all": (
        {"trainer": WithoutAnyLabel},
        r"the batch has no labels, and a row's loss needs one; pass label_column=",
        {"trainer": Unlabeled},
    ),
}


def train(folder, vog, *, rows=list, trainer=Noting, collate=models.collate):
    """The model after one step, or the error, with the weights before."""
    case = case_of("vit")
    before = {name: value.clone() for name, value in case.model.state_dict().items()}
    options = {"max_steps": 1, "per_device_train_batch_size": 5, "pieces": {"data_collator": collate}}
    error = None
    try:
        trained(folder, [vog], rows=rows(labeled(case)), model=case.model, trainer_class=trainer, **options)
    except VoGError as raised:
        error = raised
    return case.model.state_dict(), before, error


@pytest.mark.parametrize(("refused", "message", "neighbor"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_observed_is_refused_before_the_first_step(refused, message, neighbor, tmp_path):
    """The error says why, names collect='replay' and leaves the weights; the nearest training is observed."""
    state, before, error = train(tmp_path / "refused", VoGCallback(collect="training", log=False), **refused)
    with pytest.raises(VoGError, match=message):
        raise error
    assert "collect='replay'" in str(error)
    assert all(torch.equal(state[name], before[name]) for name in before)
    vog = VoGCallback(collect="training", log=False)
    state, before, error = train(tmp_path / "accepted", vog, **neighbor)
    assert error is None
    assert any(not torch.equal(state[name], before[name]) for name in before)
    observed = vog.scores.column("observations")
    assert observed.sum() == {CustomLoader: 4, Halved: 2}.get(neighbor.get("trainer"), 5)
    assert (vog.scores.column("loss")[observed == 1] > 0).all()


def test_visits_that_are_damaged_while_training_are_named(tmp_path):
    """A part of an epoch's visits is cut short: training ends well, and the scores say which file is damaged."""
    vog = VoGCallback(collect="training", log=False)

    def cut_short(model, control):
        for path in (tmp_path / "_vog" / "visits").glob("epoch-00000-*.parquet"):
            path.write_bytes(path.read_bytes()[:-9])

    trainer = trained(tmp_path, [vog, AtStep(6, cut_short)], rows=digits().with_transform(plain))
    assert trainer.state.global_step == 12
    with pytest.raises(NotScoredError, match=r"the visits of rows in .*epoch-00000-.* are damaged"):
        vog.scores  # noqa: B018
