"""What both engines share."""

import pytest

from keras_mixer.engines.engine import check_batch_memory, check_batch_size
from keras_mixer.engines.hosts import EngineError


def test_batches_must_divide():
    check_batch_size(12, 4)
    with pytest.raises(EngineError, match="nearest.* 12 and 16"):
        check_batch_size(13, 4)
    with pytest.raises(EngineError, match="nearest size is 4"):
        check_batch_size(3, 4)


def test_batches_must_divide_into_parts():
    check_batch_size(24, 4, 3)
    with pytest.raises(EngineError, match="in 3 parts each.* 12 and 24"):
        check_batch_size(20, 4, 3)


def test_the_images_of_a_batch_must_fit_into_memory():
    each = 8 * 8 * 3 * 4
    check_batch_memory(20, 8, 2, memory=10 * each)
    with pytest.raises(EngineError, match="smaller one, far below 20"):
        check_batch_memory(22, 8, 2, memory=10 * each)
