import pytest

from training.cli.options import rank_progress


def test_rank_0_alone_says_something(capsys: pytest.CaptureFixture[str]) -> None:
    for is_main in (True, False):
        with rank_progress(is_main) as progress:
            progress.update("training", 10, 10)
            progress.event("epoch", f"epoch 1/1 of {is_main}", epoch=1)
    out, err = capsys.readouterr()
    assert out == ""
    assert "epoch 1/1 of True\n" in err
    assert "False" not in err
