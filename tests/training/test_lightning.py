"""Lightning feeds on `TrainingBatches` as it is, and takes up a training at the very sample."""

from pathlib import Path
from typing import Any

import pytest
import torch

from training.data import Batch, Shards, TrainingBatches

lightning = pytest.importorskip("lightning", reason="the dev extra brings it")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*LeafSpec")
