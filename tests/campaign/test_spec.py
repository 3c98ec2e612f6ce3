"""Specs: what is wrong is named with file, line, key, what was expected and what was got."""

import tomllib

import pytest

from fperr.campaign.jobs import COMMON_KEYS, JOBS
from fperr.campaign.spec import CAMPAIGN_KEYS, MODEL_KEYS, read_spec
from fperr.campaign.spec_lines import line_of
from fperr.figures import FIGURES
from fperr.figures.published import ROWS
from tests.makers.campaigns import ROOT

GOOD = """\
name = "good"  # line 1
batch_size = 10

[[models]]
source = "fashion_standard"
images = 20
radius = "8/255"

[[models]]
source = "net.py:build"
name = "mine"
data = "images.npz"
radius = 0.5
box = [-1, 2]

[[jobs]]
job = "attack"
losses = [
  "ce",
  "mifpe:T=4",
]
steps = 5
"""


def written(folder, text):
    (folder / "spec.toml").write_text(text)
    return folder / "spec.toml"


def test_a_good_spec_is_read_whole(tmp_path):
    spec = read_spec(written(tmp_path, GOOD))
    assert spec.name == "good"
    assert [model.name for model in spec.models] == ["fashion_standard", "mine"]
    first, second = (model.options for model in spec.models)
    assert first["radius"] == 8 / 255
    assert second["box"] == (-1.0, 2.0)
    assert second["source"] == f"{tmp_path}/net.py:build"
    assert second["data"] == f"{tmp_path}/images.npz"
    assert spec.jobs[0].options["losses"] == ("ce", "mifpe:T=4")
    assert spec.jobs[0].options["formats"] == ("float32",)


# what is replaced, by what, and the line and words of the error
FAULTS = [
    ('name = "good"', "", 1, "expected name: name of the campaign, .* got none"),
    ("batch_size = 10", "batch_size = 0", 2, r"batch_size: expected a whole number, .* got 0"),
    ("batch_size = 10", "batch_size = true", 2, r"batch_size: expected a whole number, .* True"),
    (
        "batch_size = 10",
        "batch_size = 10\ncell_seconds = 5",
        3,
        "cell_seconds: expected batch_size or cell_seconds, got both",
    ),
    ("images = 20", "image = 20", 6, r"models\[1\].image: .* got image, did you mean images\?"),
    ('"8/255"', '"8/0"', 7, r"models\[1\].radius: expected a number above 0, .* got '8/0'"),
    ('"8/255"', "-1", 7, r"models\[1\].radius: expected a number above 0"),
    ('"8/255"', '"big"', 7, r"models\[1\].radius: .* got 'big'"),
    ('"fashion_standard"', '"fashion_standart"', 5, r"source: .* fashion_standard.* got"),
    ('name = "mine"', 'name = "fashion_standard"', 11, "expected another name .* got"),
    ('data = "images.npz"\n', "", 9, r"models\[2\]: expected data, .* got none"),
    ('radius = "8/255"\n', "", 4, r"models\[1\]: expected radius, in the model or in the job"),
    ("[-1, 2]", "[2, -1]", 14, r"box: expected two numbers, .* got \[2, -1\]"),
    ('"attack"', '"atack"', 17, "job: expected job, one of measure, attack, attribute, got"),
    ('job = "attack"', "", 16, r"jobs\[1\]: expected job"),
    ('"mifpe:T=4"', '"mifpee"', 18, "losses: expected a list of different losses, .* 'mifpee'"),
    ('"mifpe:T=4"', '"ce"', 18, "losses: expected a list of different losses"),
    ("steps = 5", 'formats = ["float8"]', 22, r"formats: .* out of float16, .* got \['float8'\]"),
    ("steps = 5", "starts = 1.5", 22, r"starts: expected a whole number, .* got 1.5"),
    ("steps = 5", 'models = ["mines"]', 22, r"models: .* out of fashion_standard, mine, got 'min"),
    ("steps = 5", "images = 0", 22, r"images: expected a whole number, at least 1, got 0"),
    ("[[jobs]]", "[jobs]", 16, r"jobs: expected at least one table \[\[jobs\]\], got"),
]


@pytest.mark.parametrize(("old", "new", "line", "words"), FAULTS, ids=[f[3][:40] for f in FAULTS])
def test_what_is_wrong_is_named_with_its_line(tmp_path, old, new, line, words):
    assert old in GOOD
    path = written(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(ValueError, match=words) as raised:
        read_spec(path)
    assert str(raised.value).startswith(f"{path}, line {line}:"), raised.value


def test_a_file_that_is_no_toml_or_none(tmp_path):
    with pytest.raises(ValueError, match=r"is not TOML: .*line 2"):
        read_spec(written(tmp_path, "name = 'x'\nbatch_size =\n"))
    with pytest.raises(ValueError, match=r"nowhere.toml cannot be read"):
        read_spec(tmp_path / "nowhere.toml")


@pytest.mark.parametrize("key", ["source", "data"])
def test_code_from_elsewhere_is_refused_unless_it_is_allowed(tmp_path, key):
    (tmp_path / "inside").mkdir()
    outside = tmp_path / "net.py"
    outside.write_text("")
    lines = {"source": "net.py:build", "data": "images.npz"}
    lines[key] = {"source": "../net.py:build", "data": "../net.py:dataset"}[key]
    text = GOOD.replace("net.py:build", lines["source"]).replace("images.npz", lines["data"])
    path = written(tmp_path / "inside", text)
    with pytest.raises(ValueError, match=rf"{key}: expected a module in the spec's folder, or --a"):
        read_spec(path)
    assert str(outside) in str(read_spec(path, allows_code=True).models[1].options[key]).replace(
        "/inside/..", ""
    )
    (tmp_path / "inside" / "link.py").symlink_to(outside)  # a link inside leads outside
    lines[key] = lines[key].replace("../net.py", "link.py")
    text = GOOD.replace("net.py:build", lines["source"]).replace("images.npz", lines["data"])
    with pytest.raises(ValueError, match="in the spec's folder, or --allow-code"):
        read_spec(written(tmp_path / "inside", text))


def test_every_key_has_a_meaning_and_a_default_of_its_kind():
    tables = [CAMPAIGN_KEYS, MODEL_KEYS, *((*COMMON_KEYS, *job.keys) for job in JOBS.values())]
    for keys in tables:
        assert len({key.name for key in keys}) == len(keys)
        for key in keys:
            assert len(key.meaning.split()) >= 3
            if isinstance(key.default, str | int | float) and not key.is_required:
                assert key.kind.read(key.default) == key.default


@pytest.mark.parametrize(
    ("text", "path", "line"),
    [
        ('a = """\nb = 1\n"""\nb = 2\n', ("b",), 4),
        ("a = [\n  [1],\n]\n# b = 1\nb = 2\n", ("b",), 5),
        ('"a b" = 1\n', ("a b",), 1),
        ("[t]\nx = {y = 1}\n", ("t", "x", "y"), 2),
        ("[[t]]\na = 1\n[[t]]\na = 2\n", ("t", 1, "a"), 4),
        ("a.b = 1\n", ("a", "b"), 1),
        ("a = 1\n", ("b",), None),
    ],
)
def test_lines(text, path, line):
    tomllib.loads(text)
    assert line_of(text, path) == line


SPECS = sorted((ROOT / "docs" / "campaigns").glob("*.toml"))


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_the_specs_of_the_pages_are_read(path):
    spec = read_spec(path)
    assert set(spec.options["figures"]) <= set(FIGURES)
    assert spec.models


def test_the_spec_of_the_papers_table_has_its_26_rows():
    spec = read_spec(ROOT / "docs" / "campaigns" / "papers_table.toml")
    expected = [f"{r.defence}, {r.architecture}, {r.dataset}" for r in ROWS]
    assert len(expected) == 26
    assert [model.name for model in spec.models] == expected
    for model, row in zip(spec.models, ROWS, strict=True):
        assert model.options["source"] == row.network or row.source in model.options["where"]
        assert model.options["radius"] == (0.3 if row.dataset == "MNIST" else 8 / 255)
