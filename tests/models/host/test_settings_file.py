"""Settings as people's editors leave them: taken, or refused with the line and the remedy."""

import os
from pathlib import Path

import pytest

from broker.config import load_config
from edge_agent.config import read_config
from models.errors import UsageError

AGENT = '[device]\nid = "board-1"\ntask = "s"\n[fleet]\nname = "f"\nbroker = "mqtt://h"\n'
BROKER = (
    '[fleet]\nname = "f"\nbroker = "mqtt://h"\n[storage]\ndirectory = "d"\n[[task]]\nbundle = "b"\n'
)
BOTH = pytest.mark.parametrize(
    ("read", "text"),
    [(read_config, AGENT), (load_config, BROKER)],
    ids=["agent.toml", "broker.toml"],
)


def refusal(read: object, path: Path, data: bytes | str) -> str:
    """Return the sentence that refuses a file with ``data``; it names the file."""
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(UsageError) as error:
        read(path)  # type: ignore[operator]
    said = str(error.value)
    assert str(path) in said
    assert "\n" not in said
    assert "tulips" not in said
    return said


@BOTH
def test_a_file_of_another_editor_is_taken(read: object, text: str, tmp_path: Path) -> None:
    path = tmp_path / "it.toml"
    for data in (
        b"\xef\xbb\xbf" + text.encode(),
        text.replace("\n", "\r\n").encode(),
        b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode(),
        text.replace(" = ", "\t=\t").encode(),
        text.rstrip().encode(),
        text.replace('"f"', "'f'  # na\u00efve \u201cquotes\u201d in a remark").encode(),
    ):
        path.write_bytes(data)
        assert read(path).fleet.name == "f"  # type: ignore[operator]


@BOTH
@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("[device]".encode("utf-16"), "is text in UTF-16: save it as UTF-8"),
        ("[device]".encode("utf-16-be"), "is text in UTF-16"),
        ("[device]".encode("utf-16-le"), "is text in UTF-16"),
        ("[device]".encode("utf-32"), "is text in UTF-32"),
        (b"a = 1\n# B\xfcro\n", "line 2 has a byte that is no UTF-8 (0xFC): save it as UTF-8"),
        (b"a = 1\rb = 2\r", "lines end with CR alone"),
        (b"a = 1\n" * 400_000, "more than 1 MB"),
        (b"x = " + b"[" * 5000, "brackets"),
        (b".".join([b"a"] * 3000) + b" = 1", "sections in sections without end"),
        (b"x = " + b"9" * 5000, "line 1 (x): exceeds the limit"),
    ],
    ids=[
        "utf-16",
        "utf-16-be",
        "utf-16-le",
        "utf-32",
        "latin-1",
        "cr",
        "long",
        "deep",
        "keys",
        "digits",
    ],
)
def test_a_file_that_is_no_such_text_is_refused(
    read: object, text: str, data: bytes, said: str, tmp_path: Path
) -> None:
    assert said in refusal(read, tmp_path / "it.toml", data)


@BOTH
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("password = \u201ctulips\u201d", "(password): \u201c (U+201C) is no quotation mark"),
        ("password = \u2018tulips\u2019", "(U+2018) is no quotation mark"),
        ("password = \u00abtulips\u00bb", "(U+00AB) is no quotation mark"),
        ("password = `tulips`", "(U+0060) is no quotation mark"),
        ('username\u00a0= "u"', "U+00A0 is a blank that TOML does not know"),
        ('username =\u200b"u"', "U+200B is a blank"),
        (r'ca = "C:\data\x"', "(ca): a backslash means something else"),
        (r'ca = "C:\Users"', "a backslash means something else"),
        (r'ca = "C:\new"', "fleet.ca has a control character in it (U+000A)"),
        (r"ca = 'C:\new'", "fleet.ca is a path of Windows"),
        ('ca = "C:/new"', "fleet.ca is a path of Windows"),
        ('ca = "$HOME/ca.crt"', "fleet.ca begins with a variable of the shell"),
        ('ca = "${HOME}/ca.crt"', "fleet.ca begins with a variable of the shell"),
        ('username = "u"\nusername = "v"', "(username): this is set twice"),
        ('[fleet]\nname = "g"', "this is set twice"),
        ("password = tulips", "(password): text stands in quotes"),
        ("ca = /etc/ca.crt", "(ca): text stands in quotes"),
        ('password: "tulips"', "write key = value, not key: value"),
        ('password = "tulips', '(password): the closing " is missing'),
        ("password =", "(password): there is no value behind ="),
        ("username = None", "leave out what is not set"),
        ("[storage", "expected ']'"),
        ("Username = 'u'", "there is no setting 'Username'; did you mean 'username'?"),
        (
            "password-file = 'u'",
            "there is no setting 'password-file'; did you mean 'password_file'",
        ),
        ("directory = 'u'", "there is no setting 'directory' here; it belongs into [storage]"),
        ("username = 5", "username: expected `str | null`, got `int`; write it in quotes"),
        ("password = 12345678", "write it in quotes"),
        ("protocol = 5", "protocol: expected `str`, got `int`; write it in quotes"),
        ("protocol = '4'", 'invalid enum value \'4\'; known are "auto", "5", "3.1.1"'),
        ("protocol = 3.1.1", "(protocol): text stands in quotes"),
        ("client_id = 10.0.0.7", "text stands in quotes"),
        (r"ca = 'certs\ca.crt'", "a path is written with / here, not with backslashes"),
        ('username = "u";', "(username): nothing stands behind a value but a remark"),
        ('username = "u",', "(username): nothing stands behind a value but a remark"),
        ('username == "u"', "one = stands between key and value"),
        ("; a remark", "a remark begins with #"),
        ("// username = 'u'", "a remark begins with #"),
        ("[storage] directory = 'u'", "the name of a section has a line of its own"),
        ("ca = {a = 1,}", "lines of their own"),
        ('{"username": "u"}', "no JSON"),
        ("<<<<<<< HEAD", "a merge left both versions in the file"),
        ("=======", "a merge left both versions in the file"),
        ("```", "a mark of a web page: delete the line"),
        ("user\u00adname = 'u'", "U+00AD is a blank"),
        ("username = 'u'\u2028", "U+2028 is a blank"),
        ("user\u2013name = 'u'", "\u2013 (U+2013) stands outside of quotes"),
        ("username \uff1d 'u'", "\uff1d (U+FF1D) stands outside of quotes"),
        ("\x1a", "U+001A is a control character: delete it"),
        ("\x0cusername = 'u'", "U+000C is a control character: delete it"),
    ],
)
def test_a_line_that_is_wrong_is_named_with_the_remedy(
    read: object, text: str, line: str, said: str, tmp_path: Path
) -> None:
    fleet = text.index("[fleet]\n") + len("[fleet]\n")
    assert said in refusal(read, tmp_path / "it.toml", text[:fleet] + line + "\n" + text[fleet:])


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            "[training]\nmin_minutes = '30'",
            "training.min_minutes: expected `float`, got `str`; write",
        ),
        ("[training]\nmin_minutes = '30'", "write the number without quotes"),
        (
            "[training]\nmin_minutes = '30 min'",
            "write the number alone, without quotes and without",
        ),
        ("[training]\nmin_minutes = 30min", "(min_minutes): write the number alone"),
        ("[training]\nmin_minutes = 0,5", "write a point in a number, not a comma"),
        ("[training]\nmin_minutes = 1.000,5", "write a number without marks between thousands"),
        ("[samples]\nmax_count = 10,000", "write a number without marks between thousands"),
        ("[samples]\nmax_count = 10 000", "write a number without marks between thousands"),
        ("[samples]\nmax_count = 1e4", "got `float`; write a whole number, its digits only"),
        ("[samples]\nholdout_share = .2", "write digits on both sides of a point"),
        ("[samples]\nholdout_share = 0.", "write digits on both sides of a point"),
        ("[samples]\nholdout_share = 20%", "write the number alone"),
        ("[training]\nmax_celsius = 80\u00b0C", "(max_celsius): write the number alone"),
        ("[training]\nmin_minutes = \u22125", "(U+2212) stands outside of quotes"),
        ("[samples]\nmax_count = \u0664", "(U+0664) stands outside of quotes"),
        ("[training]\nmin_minutes = inf", "training.min_minutes is no finite number"),
        ("[training]\nmin_minutes = nan", "training.min_minutes is no finite number"),
        ("[training]\nenabled = True", "(enabled): write true or false, in small letters"),
        ("[training]\nenabled = 'yes'", "training.enabled: expected `bool`"),
        ("[training]\nenabled = 'yes'", "write true or false, without quotes"),
        ("[training]\nmin_samples = 16.0", "min_samples: expected `int`, got `float`"),
        ("[training]\nmax_count = 16", "it belongs into [samples]"),
        ("[[training]]\nmin_samples = 16", "training: expected `object`, got `array`; write it as"),
        ("[inference]\nmode = 0660", "(mode): a number that begins with 0"),
        ("[storage]\ndirectory = '~nobody-here/x'", "~nobody-here is nobody's home here"),
        ("[task]\nbundle = 'x'", "there is no setting 'task'; broker.toml has it"),
    ],
)
def test_a_mistake_in_agent_toml_is_named_with_the_remedy(
    lines: str, said: str, tmp_path: Path
) -> None:
    assert said in refusal(read_config, tmp_path / "agent.toml", f"{AGENT}{lines}\n")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("[task.aggregation]\nseconds = '30s'", "[task.aggregation] (number 1) seconds: expected"),
        ("[task.aggregation]\nseconds = '30s'", "write the number alone, without quotes"),
        ("[task.aggregation]\nsecond = 30", "did you mean 'seconds'"),
        ("[task.aggregation]\nseconds = nan", "task.aggregation.seconds is no finite number"),
        ("learning_rate = 0.1", "here; it belongs into [task.aggregation] or [task.training]"),
        ("[task.aggregation]\nrule = 'mode'", "is none of mean, trimmed_mean"),
        ("[task.downlink]\nmethod = 'none'", "known are "),
        ("[device]\nid = 'x'", "there is no setting 'device'; agent.toml has it"),
        ("[storages]\n", "did you mean 'storage'"),
    ],
)
def test_a_mistake_in_broker_toml_is_named_with_the_remedy(
    lines: str, said: str, tmp_path: Path
) -> None:
    assert said in refusal(load_config, tmp_path / "broker.toml", f"{BROKER}{lines}\n")


def test_a_single_task_section_is_told_its_brackets(tmp_path: Path) -> None:
    said = refusal(load_config, tmp_path / "broker.toml", BROKER.replace("[[task]]", "[task]"))
    assert "task: expected `array`, got `object`; write [[task]] for each of them" in said


@BOTH
def test_what_is_no_file_is_refused(read: object, text: str, tmp_path: Path) -> None:
    for name, said in ((".", "is a directory"), ("none.toml", "No such file"), ("a\0b", "no name")):
        with pytest.raises(UsageError, match=said):
            read(tmp_path / name)  # type: ignore[operator]


@BOTH
def test_settings_may_come_through_a_pipe(read: object, text: str, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.write(writer, text.encode())
    os.close(writer)
    try:
        assert read(Path(f"/dev/fd/{reader}")).fleet.name == "f"  # type: ignore[operator]
    finally:
        os.close(reader)


def test_a_setting_on_the_command_line_is_checked_likewise(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text(AGENT)
    for line, said in (
        ("training.min_minutes=inf", "training.min_minutes is no finite number"),
        ("storage.directory=$HOME/x", "begins with a variable"),
        ("training.min_minutes=30s", "write the number alone"),
        ("samples.max_count=" + "9" * 5000, "samples.max_count"),
    ):
        with pytest.raises(UsageError, match=said):
            read_config(tmp_path / "agent.toml", [line])
