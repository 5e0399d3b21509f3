"""Lightning feeds on `TrainingBatches` as it is, and takes a training up at the very sample."""

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor

from pipeline import ShardFolder
from pipeline.read.collate import BatchSpec
from training.data.shards import Batch, BatchReader, TrainingBatches

pytestmark = pytest.mark.filterwarnings(
    "ignore:`isinstance.treespec, LeafSpec.` is deprecated",  # its own, with this torch
    "ignore:Be aware that when using `ckpt_path`",  # the callback that wrote it is not needed
)


class Notes(lightning.LightningModule):
    """Learns nothing, and notes which samples it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[list[int]] = []

    def training_step(self, batch: Batch, _: int) -> Tensor:
        self.seen.append(batch.indices_B.tolist())
        return self.weight * batch.canvases_BCC3.float().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Breaks(Callback):
    """Ends a training after some steps, as a crash would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: object) -> None:
        if trainer.global_step == self.step:
            raise RuntimeError("crashed")


def fit(
    shards: ShardFolder, folder: Path, *, workers: int, resume: Path | None = None, **options: Any
) -> list[list[int]]:
    content = BatchSpec(candidates=tuple(range(6)), glimpse_px=None, crops=False)
    reader = BatchReader(
        shards.reader("train"), content, workers=workers, device=torch.device("cpu")
    )
    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, max_epochs=3,
        enable_model_summary=False, default_root_dir=folder, **options,
    )  # fmt: skip
    notes = Notes()
    try:
        batches = TrainingBatches(reader, batch_size=10, seed=5)
        trainer.fit(notes, batches, ckpt_path=resume, weights_only=True)
    except RuntimeError as error:
        assert str(error) == "crashed"  # noqa: PT017 - the notes are wanted after it
    return notes.seen


@pytest.mark.quick("10")
@pytest.mark.parametrize("step", [3, 7, 10])
def test_a_training_that_crashed_goes_on_at_the_very_sample(
    opened: ShardFolder, tmp_path: Path, step: int
) -> None:
    whole = fit(opened, tmp_path, workers=2, enable_checkpointing=False)
    assert len(whole) == 3 * 7
    saves = ModelCheckpoint(
        dirpath=tmp_path, filename="last", every_n_train_steps=step, enable_version_counter=False
    )
    before = fit(opened, tmp_path, workers=2, callbacks=[Breaks(step), saves])
    after = fit(
        opened, tmp_path, workers=1, enable_checkpointing=False, resume=tmp_path / "last.ckpt"
    )
    assert before == whole[:step]
    assert after == whole[step:]
