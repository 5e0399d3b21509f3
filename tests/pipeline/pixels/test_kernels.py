import numpy as np

from pipeline.pixels import kernels


def test_without_a_place_for_its_cache_a_kernel_iscompiled_all_the_same() -> None:
    namespace: dict[str, object] = {}
    # A function that stands in no file, and so has no place for a cache.
    exec("def double(number):\n    return 2 * number", namespace)  # noqa: S102
    assert kernels.compiled("int64(int64)")(namespace["double"])(21) == 42


def test_the_weights_of_every_output_sum_to_one() -> None:
    for num_in, num_out in ((1, 1), (224, 336), (500, 64), (4000, 336), (3, 100)):
        starts, counts, weights = kernels.triangle_weights(num_in, 0, num_in, num_out)
        sums = weights.sum(axis=1) / (1 << kernels._BITS)
        np.testing.assert_allclose(sums, 1, atol=1e-5)
        assert starts.min() >= 0
        assert (starts + counts).max() == num_in
        assert counts.min() >= 1
