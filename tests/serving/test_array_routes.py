"""Test reading images from JSON without a JSON parser: pytest tests/serving/test_array_routes.py"""

import json

import numpy as np
import pytest

from cnnlab.serving import array_routes

SHAPE = (2, 2, 3)
IMAGES = np.array([[0, 9, 10, 99, 100, 255, 1, 2, 3, 4, 5, 6], range(12), [255] * 12]).reshape(3, *SHAPE)


@pytest.mark.parametrize("separators", [(", ", ": "), (",", ":")])
@pytest.mark.parametrize("name", ["inputs", "instances"])
@pytest.mark.parametrize("count", [1, 3])
def test_what_writers_of_json_write_is_read_as_a_parser_reads_it(separators, name, count, monkeypatch):
    monkeypatch.setattr(array_routes, "json", None)  # the quick way alone
    body = json.dumps({name: IMAGES[:count].tolist()}, separators=separators).encode()
    read = array_routes.read_images(body, SHAPE)
    assert read.dtype == np.uint8
    assert (read == IMAGES[:count]).all()


GOOD = json.dumps({"inputs": IMAGES[:1].tolist()})


@pytest.mark.parametrize(
    "text",
    [
        GOOD.replace("99", "099"),
        GOOD.replace("99", ""),
        GOOD.replace("[0,", "[,"),
        GOOD.replace("99", "9 9"),
        GOOD.replace("99", "256"),
        GOOD.replace("99", "-1"),
        GOOD.replace("99", "null"),
        GOOD.replace("99", "99.5"),
        GOOD.replace("99", "9" * 40),
        GOOD.replace("99", "９９"),  # noqa: RUF001  digits, but not JSON's
        GOOD.replace("[[[[0, 9, 10]", "[[[[0, 9], 10]"),
        GOOD.replace("]]]]", "]]]"),
        GOOD.replace("inputs", "images"),
        GOOD.replace("}", ', "params": {}}'),
        GOOD.replace("}", "}}"),
        GOOD.replace("}", ""),
        '{"inputs": []}',
        '{"inputs": ]}',
        '{"inputs": [[[[0, 1, 1], [0, 1, 1]], [[0, 1, 1], [0, 1, 1]]]]}',  # scaled
        "[1, 2]",
        "",
    ],
)
def test_other_bodies_are_left_to_mlflow(text):
    with pytest.raises(array_routes.UnusualError):
        array_routes.read_images(text.encode(), SHAPE)


def test_what_is_written_otherwise_is_read_by_a_parser():
    for text in (GOOD.replace("99", "99.0"), GOOD.replace(", ", " ,\n"), f" {GOOD} ", GOOD.replace("99", "9.9e1")):
        assert (array_routes.read_images(text.encode(), SHAPE) == IMAGES[:1]).all()
