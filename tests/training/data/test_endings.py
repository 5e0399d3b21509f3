from datetime import timedelta

import pytest
import torch.distributed as dist

from pipeline.common.errors import LostRankError
from training.data.endings import one_speaks


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ("[gloo/transport/tcp/pair.cc:538] Connection closed by peer [::1]:1. x", "Connection "),
        ("Application timeout caused pair closure", "Application timeout caused pair closure. "),
    ],
)
def test_what_gloo_says_of_a_lost_process_is_one_line_and_other_errors_are_bugs(
    told: str, reason: str
) -> None:
    def end(told: str) -> None:
        with one_speaks(dist.HashStore(), rank=1, answer=timedelta(minutes=3)):
            raise RuntimeError(told)

    with pytest.raises(LostRankError, match=rf"within 3 minutes; got: {reason}"):
        end(told)
    with pytest.raises(RuntimeError, match="a bug"):
        end("a bug")
