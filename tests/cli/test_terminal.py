"""What is printed on a terminal and elsewhere: tables, progress, --quiet, --fail-on, doctor."""

import io
import json
import re
import signal
import sys

import pandas as pd
import pytest

import fperr
from fperr import data, zoo
from fperr.cli import app
from fperr.cli.work import doctor, terminal
from fperr.data import named

LONG = "a_name_of_a_network_that_is_longer_than_any_narrow_terminal_is_wide/and_a_path.py:build"
FRAME = pd.DataFrame(
    {"network": [LONG, "b [bold]"], "n": [7, 1000], "error": [0.5, 1 / 3], "words": ["w " * 90] * 2}
)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def printed(monkeypatch, stream, columns, action, name="stdout"):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys, name, stream)
    action()
    return stream.getvalue()


def show():
    terminal.print_table(FRAME, "{:.3g}".format)
    terminal.print_verdict("  ce in float16 ", "do not trust: " + "w " * 90 + "END")


@pytest.mark.parametrize("columns", [20, 80, 300])
def test_a_pipe_gets_one_whole_line_for_each_row(columns, monkeypatch):
    shown = printed(monkeypatch, io.StringIO(), columns, show)
    lines = shown.splitlines()
    assert len(lines) == 4
    assert "\x1b" not in shown
    assert lines[0].split() == list(FRAME.columns)
    assert lines[1].split()[:3] == [LONG, "7", "0.5"]
    assert lines[2].split()[:4] == ["b", "[bold]", "1000", "0.333"]
    assert lines[1].count("w ") + lines[1].endswith("w") >= 90
    assert lines[3].startswith("  ce in float16 do not trust: w")
    assert lines[3].endswith("END")


@pytest.mark.parametrize("columns", [40, 80, 300])
def test_a_terminal_gets_every_letter_and_colours(columns, monkeypatch):
    shown = printed(monkeypatch, Terminal(), columns, show)
    assert "\x1b[31m" in shown  # a verdict not to trust is red
    table = printed(monkeypatch, Terminal(), columns, lambda: terminal.print_table(FRAME))
    lines = re.sub(r"\x1b\[[0-9;]*m", "", table).splitlines()
    assert max(map(len, lines)) <= columns
    every = sum(cell.count("w") for column in ("network", "words") for cell in FRAME[column])
    assert "".join(lines[2:]).count("w") == every
    assert "…" not in table


def test_a_table_without_rows_is_its_head(monkeypatch):
    shown = printed(
        monkeypatch, io.StringIO(), 80, lambda: terminal.print_table(FRAME[:0], "{:.3g}".format)
    )
    assert shown.split() == list(FRAME.columns)


def advance(*, quiet):
    with terminal.progress_bar(quiet=quiet) as bar:
        task = bar.add_task("attack", total=1000, text="")
        for done in range(1000):
            bar.update(task, advance=1, text=f"{done} withstand")


@pytest.mark.parametrize(
    ("stream", "quiet", "is_shown"),
    [(Terminal, False, True), (Terminal, True, False), (io.StringIO, False, False)],
)
def test_progress_is_shown_on_a_terminal_only(stream, quiet, is_shown, monkeypatch):
    shown = printed(monkeypatch, stream(), 100, lambda: advance(quiet=quiet), "stderr")
    assert ("attack" in shown) == is_shown
    assert bool(shown.strip()) == is_shown
    assert terminal.shows_progress(quiet=quiet) == is_shown


MEASURE = ["measure", "fashion_saturated", "--n", "4", "--losses", "ce", "--formats", "float16"]


def called(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fperr", *arguments])
    with pytest.raises(SystemExit) as end:
        app.main()
    return end.value.code or 0, *capsys.readouterr()


def test_a_bad_verdict_is_code_3_where_it_is_asked_for(tmp_path, monkeypatch, capsys):
    """Also: --quiet prints nothing to standard output, and the rows are in the files."""
    monkeypatch.chdir(tmp_path)
    code, out, error = called([*MEASURE, "--fail-on", "untrustworthy", "-q"], monkeypatch, capsys)
    assert (code, out) == (3, "")
    assert error == "fperr: a verdict is as bad as --fail-on untrustworthy says\n"
    folder = tmp_path / "out" / "fashion_saturated"
    report = fperr.Report.from_parquet(folder / "measurements.parquet")
    assert [v.state for v in report.verdicts("ce", "float16").values()] == ["do not trust"]
    code, out, _ = called(MEASURE, monkeypatch, capsys)
    assert code == 0
    assert "ce in float16  do not trust" in out


@pytest.mark.parametrize(("fail_on", "code"), [("untrustworthy", 0), ("unclear", 3), ("bad", 2)])
def test_an_open_verdict_is_bad_only_for_unclear(fail_on, code, tmp_path, monkeypatch, capsys):
    options = ["--n", "1", "--losses", "mifpe", "--formats", "float32", "--out", str(tmp_path)]
    arguments = ["measure", "fashion_standard", *options, "--fail-on", fail_on]
    assert called(arguments, monkeypatch, capsys)[0] == code


def test_quiet_attacks_print_nothing(tmp_path, monkeypatch, capsys):
    options = ["--radius", "8/255", "--n", "2", "--steps", "1", "--out", str(tmp_path)]
    arguments = ["attack", "fashion_standard", *options]
    assert called([*arguments, "--quiet"], monkeypatch, capsys) == (0, "", "")
    code, out, _ = called(arguments, monkeypatch, capsys)
    assert code == 0
    assert "radius 0.0313725" in out  # 8/255


def test_the_doctor_says_what_is_there_and_what_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FPERR_DATA", str(tmp_path))
    file = tmp_path / "mnist" / "t10k-images-idx3-ubyte.gz"
    file.parent.mkdir()
    file.write_bytes(b"")
    file.with_name("t10k-labels-idx1-ubyte.gz").write_bytes(b"")
    monkeypatch.setitem(doctor._OPTIONAL, "no-such-thing", ("no_such_thing", "nothing"))
    code, out, error = called(["doctor", "--json"], monkeypatch, capsys)
    assert (code, error) == (0, "")
    found = json.loads(out)
    assert found["versions"]["fperr"] == fperr.__version__
    assert found["versions"]["torch"].startswith("2.")
    assert found["data"]["FPERR_DATA"] == str(tmp_path)
    assert found["data"]["mnist_test"] == "found"
    assert found["data"]["cifar10_test_800"] == "missing"
    assert found["networks"]["fashion_standard"] == "packaged"
    assert found["networks"]["mnist_fastat_pgd"] == "missing"
    assert found["optional"]["no-such-thing"] == {"version": None, "enables": "nothing"}
    code, page, _ = called(["doctor"], monkeypatch, capsys)
    assert code == 0
    lines = [" ".join(line.split()) for line in page.splitlines()]
    assert "no-such-thing not installed nothing" in lines
    assert "mnist_test found" in lines
    monkeypatch.delenv("FPERR_DATA")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "usual"))
    assert doctor.diagnose()["data"]["FPERR_DATA"].startswith("not set")
    assert doctor.diagnose()["data"]["folder"] == str(tmp_path / "usual" / "fperr")
    assert doctor.diagnose()["data"]["mnist_test"] == "missing"


def test_the_doctor_knows_mps_and_says_what_it_lacks(monkeypatch):
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    assert "no float64" in doctor.diagnose()["devices"]["mps"]
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    assert "mps" not in doctor.diagnose()["devices"]


def test_every_data_set_has_its_file_and_it_is_the_one_that_is_read(monkeypatch, tmp_path):
    assert set(named._FILES) == set(data.DATASETS)
    monkeypatch.setenv("FPERR_DATA", str(tmp_path))
    for name, needed in named._FILES.items():
        for relative in needed[:1]:
            with pytest.raises(fperr.errors.MissingDataError, match=relative):
                data.images_named(name)


def test_the_zoo_says_which_weights_are_at_hand(monkeypatch, capsys):
    monkeypatch.delenv("FPERR_DATA", raising=False)
    _, out, _ = called(["zoo"], monkeypatch, capsys)
    head, *rows = out.splitlines()
    assert head.split()[:3] == ["network", "data", "weights"]
    states = {row.split()[0]: row.split()[2] for row in rows}
    expected = {
        e.name: "packaged" if e.checkpoint is None else "missing" for e in zoo.REGISTRY.values()
    }
    assert states == expected


class _Finalised:
    """An object during whose end a signal comes."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __del__(self) -> None:
        signal.raise_signal(self._number)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_python_drops_stops_at_the_next_check(number):
    # what a shell starts in the background ignores Ctrl-C, and so does this process then
    before = signal.signal(number, signal.default_int_handler)
    try:
        with terminal.stopped_by_signals() as check:
            check()
            _Finalised(number)  # Python drops what is raised here
            with pytest.raises(KeyboardInterrupt):
                check()
        with terminal.stopped_by_signals(), pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)


def test_an_ignored_ctrl_c_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with terminal.stopped_by_signals() as check:
            signal.raise_signal(signal.SIGINT)
            check()
    finally:
        signal.signal(signal.SIGINT, before)
