"""Caption files: taken whole, or refused by name."""

from __future__ import annotations

import json

import pytest

from tests.tiny import balls, tiny_experiment
from vader.commands.train import main as train
from vader.data import DataError
from vader.data.captions import with_captions


@pytest.fixture
def data():
    return balls(tiny_experiment())


@pytest.fixture
def write(tmp_path):
    def writing(content) -> str:
        file = tmp_path / "captions.json"
        file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return str(file)

    return writing


def test_all_captions_are_replaced_and_the_pictures_stay(data, write):
    texts = {item.key: f"a  ball\n called {item.key}" for item in data}
    described = with_captions(data, write(texts))
    assert [item.caption for item in described] == [f"a ball called {item.key}" for item in data]
    assert described.digest == data.digest and described[0].images is data[0].images
    assert data[0].caption is None


FULL = {f"ball-{i}": "a ball" for i in range(6)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"ball-0": "a ball"}, r"5 of 6 objects of data set balls have no caption there, the first is 'ball-1'"),
        (FULL | {"bal-1": "x"}, r"object 'bal-1' is not in data set balls \(did you mean 'ball-1'\?\)"),
        (FULL | {"ball-2": "  "}, r"1 of 6 objects of data set balls have no caption there, the first is 'ball-2'"),
        (FULL | {"ball-2": 3}, r"entry 'ball-2' is 3, expected a caption"),
        (["a ball"], "entry 0 has no key"),
        ("{", "not JSON"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(data, write, content, message):
    file = write(content)
    with pytest.raises(DataError, match=f"^{file}: {message}"):
        with_captions(data, file)
    with pytest.raises(DataError, match="gone.json: cannot be read"):
        with_captions(data, file.replace("captions", "gone"))


def test_captions_are_for_models_that_take_text(write):
    from vader.settings.checks import ConfigError

    with pytest.raises(ConfigError, match="--captions is for models that take text, and procedural_chairs takes none"):
        train(["procedural_chairs", "--profile", "smoke", "--captions", write(FULL)])
