"""An archive holds all that tells of a run and no secret; what is no secret is byte for byte as it was."""

import errno
import hashlib
import json
import os
import string
import tarfile
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdl.errors import UsageError
from hpcdl.run_folder import RunFolder
from hpcdl.runs.archive import packing
from hpcdl.runs.archive.secrets import REMOVED, Cleaner, secrets_of

KNOWN = 'it"s\\a sécret/value'


def word(letters, length):
    return st.text(letters, min_size=length, max_size=length)


ALPHA, HEX = string.ascii_letters + string.digits, "0123456789abcdef"
BODY = st.lists(word(ALPHA + "+/", 64), min_size=1, max_size=30)
AROUND = st.sampled_from(
    ["{}", "boom\\n{}", "a\\t{}", "\x1b[32m{}\x1b[0m", "\x1b[01;31m{}", "\x1b[38;5;208m{}", "\\u001b[1m{}",
     "x%3Ftoken%3D{}", "\\x0a{}", "\\u0026{}"]
)  # fmt: skip
PHRASE = st.text(ALPHA + " &;)}.!", min_size=12, max_size=30)
SECRETS = st.one_of(
    st.tuples(word(ALPHA, 34).map("hf_{}".format), AROUND),
    st.tuples(word(HEX, 40), AROUND.map("wandb {}".format)),
    st.tuples(word(ALPHA, 36).map("nvapi-{}".format), AROUND),
    st.tuples(word(ALPHA, 36).map("wandb_v1_{}".format), AROUND),
    st.tuples(PHRASE, st.sampled_from(
        ['DB_PASSWORD="{}"', "MY_SECRET='{}'", "{{'MY_TOKEN': '{}'}}", '{{\\"password\\": \\"{}\\"}}', 'password: "{}"',
         'os.environ["DB_PASS"] = "{}"', "cfg['password']='{}'", "{{b'DB_PASS': b'{}'}}", 'setenv DB_PASS "{}"']
    )),
    st.tuples(word(ALPHA, 12), st.sampled_from(
        ["--password {}", "--hf-token={}", '["--api-key", "{}"]', "- --password\n- {}", "DB_PASS={}", "MYSQL_PWD={}",
         "TOKEN={}", "MY_TOKEN: {}", "OPENAI_KEY={}", "machine a.org login ada password {}",
         "machine a.org\n  login ada\n  password {}", "AccountName=a;AccountKey={}==;EndpointSuffix=b.net",
         "https://a.org/b?c=d&password={}&e=f", "X-Amz-Security-Token={}%2F&e=f", "https://ada:p@{}@a.org/b",
         "connect(password=p)ss{})", "cfg[DB_PASS]={}", "setenv HF_TOKEN {}"]
    )),
    word(ALPHA, 43).map(lambda s: (s, "https://a.net/b?sv=2022&sig={}%3D&se=1")),
    word(ALPHA, 34).map(lambda s: ("hf_" + s, "x={}")),
    word(ALPHA, 36).map(lambda s: ("ghp_" + s, "https://github.com ({})")),
    word(ALPHA, 20).map(lambda s: ("glpat-" + s, '"{}"')),
    word(ALPHA + "-_", 40).map(lambda s: ("sk-" + s, "key {}")),
    word(string.ascii_uppercase + string.digits, 16).map(lambda s: ("AKIA" + s, "{},")),
    word(HEX, 40).map(lambda s: (s, "wandb: logging in with {}")),
    word(HEX, 40).map(lambda s: (s, '{{"WANDB_API_KEY": "{}"}}')),
    word(ALPHA, 30).map(lambda s: (s, "Authorization: Bearer {}")),
    word(ALPHA, 30).map(lambda s: (s, '"authorization": "Basic {}"')),
    word(ALPHA, 12).map(lambda s: (s, "git clone https://ada:{}@example.org/code.git")),
    word(ALPHA, 12).map(lambda s: (s, "export DB_PASSWORD={}")),
    word(ALPHA, 12).map(lambda s: (s, "client_secret: '{}'")),
    word(ALPHA, 12).map(lambda s: (s, "MY_SERVICE_TOKEN={} python train.py")),
    BODY.map(lambda lines: ("\n".join(lines), "-----BEGIN RSA PRIVATE KEY-----\n{}\n-----END RSA PRIVATE KEY-----")),
    BODY.map(lambda lines: ("\n".join(lines), "-----BEGIN PGP PRIVATE KEY BLOCK-----\n\n{}\n-----END PGP PRIVATE KEY BLOCK-----")),
    BODY.map(lambda lines: ("\n[rank0]: ".join(lines), "[rank0]: -----BEGIN PRIVATE KEY-----\n[rank0]: {}\nno more")),
    BODY.map(lambda lines: ("\\n".join(lines), "-----BEGIN PRIVATE KEY-----\\n{}\\n-----END PRIVATE KEY-----")),
    st.just((KNOWN, "login as {}")),
    st.just((json.dumps(KNOWN)[1:-1], '{{"a": "{}"}}')),
)  # fmt: skip
INNOCENT = st.sampled_from(
    [
        "step 7 loss 2.5000 grad norm 1.250 lr 3.00e-04 2.05k tokens/s", '{"tokens": 8192, "tokens_per_second": 1e5}',
        "tokenizer: bytes", "task-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "http://n1:29500/a@b", "NUM_TOKENS=8192000",
        "commit 3f786850e387550fdab836ed7e6dc881de23001b", "ähm ✓", "", "passwd", "TOKENIZERS_PARALLELISM=false1",
        "the secret of good training", "NUM_TOKEN_FILES", "--max-tokens 131072 --tokenizer bytes-of-utf8",
        "--eos-token '<|endoftext|>' --token-budget 1000000", "EOS_TOKEN: '<|endoftext|>'", "tokens 131072",
        "PWD=/home/ada/code OLDPWD=/home/ada", "Password:", "------------ -- secrets of training -----------",
        'if cfg["password"]: return_early(now)', 'os.environ["TOKENIZERS_PARALLELISM"] = "false1"',
        "setenv MAX_TOKENS 131072; setenv OLDPWD /home/ada", 'tokens["count"] = 1234567', "setenv the secret of training",
        "all passes: forward_pass=12.34567 backward", "PASSED: 17 tests, PASSES=1000000", "key=value key: value", "from huggingface_hub import hf_hub_download_something_with_a_long_name",
    ]
)  # fmt: skip


def cleaned(content, sizes=(1 << 20,), values=(KNOWN,)):
    blocks, place = [], 0
    while place < len(content):
        size = sizes[len(blocks) % len(sizes)]
        blocks.append(content[place : place + size])
        place += size
    parts = list(Cleaner(values).cleaned(blocks))
    return b"".join(part for part, _ in parts), sum(count for _, count in parts)


@given(
    st.lists(st.one_of(SECRETS, INNOCENT), max_size=20), st.lists(st.integers(1, 400), min_size=1, max_size=5)
)
def test_no_secret_of_any_shape_survives_and_all_else_stays(lines, sizes):
    """Property: however a file is cut into blocks, it is the file with each secret replaced and nothing else."""
    secrets = [line[0] for line in lines if isinstance(line, tuple)]
    texts = [line if isinstance(line, str) else line[1].format(line[0]) for line in lines]
    content = "\n".join(texts).encode()
    found, count = cleaned(content, sizes)
    for secret in secrets:
        assert secret.encode() not in found
    kept = [line for line in lines if isinstance(line, str)]
    for line in kept:
        assert line.encode() in found
    assert count == len(secrets)
    if not secrets:
        assert found == content


@given(st.binary(max_size=300), st.lists(st.integers(1, 50), min_size=1, max_size=3))
def test_bytes_of_any_kind_stay(content, sizes):
    assert cleaned(content, sizes) == (content, 0) or REMOVED in cleaned(content, sizes)[0]


def test_what_stands_before_a_secret_stays():
    text = b"GET / Authorization: Bearer abcdefghijklmnop123 ok"
    assert cleaned(text)[0] == b"GET / Authorization: Bearer [removed] ok"
    assert cleaned(b"ftp://ada:hunter2@example.org")[0] == b"ftp://ada:[removed]@example.org"
    assert cleaned(b'{"api_key": "abcdefgh", "step": 3}')[0] == b'{"api_key": "[removed]", "step": 3}'


def test_a_secret_across_two_large_blocks_is_found():
    secret = b"hf_" + b"a" * 34
    for shift in (-36, -20, -1, 0):
        content = b"x" * ((1 << 20) + shift) + b" " + secret + b" " + b"y" * (1 << 20)
        found, count = cleaned(content)
        assert (count, secret in found, len(found)) == (1, False, len(content) - len(secret) + len(REMOVED))


def test_values_of_variables_whose_names_look_secret_are_known():
    given_variables = {
        "HF_TOKEN": "t1",
        "TOKENIZERS_PARALLELISM": "t2",
        "AWS_SECRET_ACCESS_KEY": "t3",
        "PATH": "t4",
    }
    assert secrets_of(given_variables) == ["t1", "t3"]
    assert cleaned(b"1 is one", values=["1", ""]) == (b"1 is one", 0)


def test_a_count_of_tokens_is_no_secret():
    """MAX_TOKENS=131072 in the shell made "tokens": [removed] of every record, which is no JSON any more."""
    assert not secrets_of({"MAX_TOKENS": "131072", "NUM_TOKENS_PER_RANK": "8192", "DATA_TOKENS_DIR": "/data"})
    assert not secrets_of({"PWD": "/home/ada", "OLDPWD": "/home/ada/code"})
    named = ["DB_PASS", "MYSQL_PWD", "OPENAI_KEY", "SLURM_JWT", "BLOB_SAS", "CONNECTION_STRING", "HF_TOKEN"]
    assert secrets_of(dict.fromkeys(named, "hunter2")) == ["hunter2"] * len(named)


def test_the_password_in_an_address_in_the_shell_is_known():
    known = secrets_of({"DATABASE_URL": "postgres://ada:p%40ssw0rd@db:5432/runs", "PAGE": "http://n1:80/a@b"})
    assert known == ["p%40ssw0rd", "p@ssw0rd"]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (r'{"a": "{\"password\": \"hunter2hunter\", \"b\": 1}"}', r'{"a": "{\"password\": \"[removed]\", \"b\": 1}"}'),
        (r'{"password": "a\"b c\\defg", "b": "c"}', '{"password": "[removed]", "b": "c"}'),
        (r'{"cmd": "X=\"password=hunter2hunter\""}', r'{"cmd": "X=\"password=[removed]\""}'),
        ("https://a.org/?password=p&ssw0rd&b=c", "https://a.org/?password=[removed]&b=c"),
        ("Server=a;Password=p;ssw0rd;Database=b", "Server=a;Password=[removed];Database=b"),
        ("connect(password=abc)defghijk, retry=3)", "connect(password=[removed], retry=3)"),
        ("https://user:p@ssw0rd@host/x@y", "https://user:[removed]@host/x@y"),
        ("password='hunter2hunter", "password='[removed]"),
        ('os.environ["DB_PASS"] = "hunter2abc"', 'os.environ["DB_PASS"] = "[removed]"'),
        ('cfg["password"]="hunter2abc"', 'cfg["password"]="[removed]"'),
        ("{b'DB_PASS': b'hunter2abc', b'a': 1}", "{b'DB_PASS': b'[removed]', b'a': 1}"),
        ("setenv DB_PASS hunter2abc ; echo", "setenv DB_PASS [removed] ; echo"),
    ],
)  # fmt: skip
def test_a_value_is_taken_out_whole_and_what_follows_stays(text, left):
    assert cleaned(text.encode()) == (left.encode(), 1)


@pytest.mark.parametrize(
    "text",
    [
        b"password=" * 20_000, b"-----BEGIN PRIVATE KEY-----" + rb"\n\n" * 20_000, b"--a-token" * 20_000,
        b"-----BEGIN PRIVATE KEY-----" * 1000, b"://a:" + b"@" * 100_000, b"wandb" * 20_000 + b"f" * 39,
        b"--" + b"token-" * 20_000, b"password: '" + b"\\" * 100_000, b"password=" + b"&;,a" * 30_000,
        b'password"]' * 20_000, b"setenv " + b"a" * 100_000, b"setenv a_key\t" * 20_000, b"password=b'" * 20_000,
        b"-" * 100_000, b"-----BEGIN PRIVATE KEY-----" + (b"\n" + b"A" * 255 + b"!") * 500,
    ],
)  # fmt: skip
def test_no_text_takes_a_cleaner_long(text):
    start = time.process_time()
    cleaned(text)
    assert time.process_time() - start < 5


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(tmp_path / "runs" / "r-1")
    for path in (
        folder.resolved, folder.rank_log(1, 0), folder.checkpoints / "5" / "shard", folder.data / "a" / "0.tokens",
    ):  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    return folder


def packed(folder, target, values=(), added=None):
    entries = packing.pack(folder, target, Cleaner(values), added or {}, lambda done, total: None)
    with tarfile.open(target) as found:
        return entries, {
            member.name.partition("/")[2]: found.extractfile(member).read()
            for member in found
            if member.isfile()
        }


def test_archive_holds_an_index_and_everything_but_checkpoints_and_prepared_data(run, tmp_path):
    seen = []
    target = tmp_path / "r.tar.gz"
    packing.pack(
        run, target, Cleaner(), {"status.json": "{}"}, lambda done, total: seen.append((done, total))
    )
    with tarfile.open(target) as found:
        assert sorted(found.getnames()) == [
            f"r-1/{name}"
            for name in (
                "INDEX.txt", "collected/left-out.txt", "collected/status.json", "index.json",
                "logs/attempt-1/rank-00000.log", "resolved.json",
            )
        ]  # fmt: skip
        left_out = found.extractfile("r-1/collected/left-out.txt").read().decode()
    assert "             1  checkpoints/5/shard\n" in left_out
    assert "data/a/0.tokens" in left_out
    assert seen[-1] == (2, 2)


def test_the_index_is_true_of_what_is_in_the_archive(run, tmp_path):
    secret = "hf_" + "b" * 34
    run.rank_log(1, 0).write_bytes(f"token {secret}\nend".encode())
    run.rank_log(1, 1).write_bytes(b"\xff\xfe \x00 odd\r\n")
    (run.path / "weights.bin").write_bytes(b"\x00\xff" * 100)
    run.claim(1).parent.mkdir()
    run.claim(1).symlink_to(f"n1:12 {secret}")
    (run.path / "outside").symlink_to(tmp_path)
    before = {
        path: path.read_bytes() for path in run.path.rglob("*") if path.is_file() and not path.is_symlink()
    }
    _, files = packed(run, tmp_path / "r.tar.gz")
    rows = {row["path"]: row for row in json.loads(files["index.json"])}
    for name, content in files.items():
        if name not in (packing.INDEX, packing.INDEX_JSON):
            row = rows[name]
            assert (row["bytes"], row["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert rows["logs/attempt-1/rank-00000.log"]["removed"] == 1
    assert files["logs/attempt-1/rank-00000.log"] == b"token [removed]\nend"
    assert files["logs/attempt-1/rank-00001.log"] == b"\xff\xfe \x00 odd\r\n"
    assert rows["weights.bin"]["removed"] is None
    assert files["weights.bin"] == b"\x00\xff" * 100
    assert rows["claims/attempt-1"]["link"] == "n1:12 [removed]"
    assert "outside" not in files
    index = files[packing.INDEX].decode()
    assert "weights.bin  (binary)" in index
    assert "2 secrets were taken out" in index
    assert secret not in index
    assert {path: path.read_bytes() for path in before} == before


def test_a_file_that_cannot_be_read_is_told_of(run, tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    run.rank_log(1, 0).chmod(0)
    entries, files = packed(run, tmp_path / "r.tar.gz")
    (row,) = [entry for entry in entries if entry.path.endswith("rank-00000.log")]
    assert row.problem == "Permission denied"
    assert "not here: Permission denied" in files[packing.INDEX].decode()


def problem_of(path, run, tmp_path):
    """Why a file is not in the archive, which the index says too."""
    entries, files = packed(run, tmp_path / "r.tar.gz")
    (row,) = [entry for entry in entries if entry.path == str(path.relative_to(run.path))]
    assert row.path not in files
    assert row.path in files[packing.INDEX].decode()
    assert f"not here: {row.problem}" in files[packing.INDEX].decode()
    assert "resolved.json" in files
    return row.problem


def test_a_binary_file_that_holds_a_secret_is_left_out(run, tmp_path):
    """A program may write anything into the folder in which it runs; bytes cannot be taken out of it."""
    path = run.path / "state.bin"
    path.write_bytes(b"\x00" * (3 << 20) + b"ghp_" + b"b" * 36 + b"\x00")
    assert problem_of(path, run, tmp_path) == "binary, and holds what looks like a secret"


@pytest.mark.parametrize(
    ("name", "kind"), [("core.1234", b"\x02\0"), ("n3-python.dump", b"\x04\0"), ("core", b"\0\x04")]
)
def test_a_core_dump_is_left_out(run, tmp_path, name, kind):
    """It holds the whole environment, and lands in the run folder, as that is where ranks run."""
    (run.path / name).write_bytes(b"\x7fELF" + b"\x00" * 12 + kind + b"\x00" * 100)
    assert problem_of(run.path / name, run, tmp_path).startswith("a core dump: ")


def test_a_large_binary_file_is_left_out_unread(run, tmp_path):
    with (run.path / "model.bin").open("wb") as file:
        file.truncate(100 << 30)
    assert problem_of(run.path / "model.bin", run, tmp_path) == "binary, and larger than 256.0 MiB"


def test_a_pipe_and_a_socket_are_left_out(run, tmp_path):
    """Whoever opens a pipe waits for its other end: the archive was never finished."""
    os.mkfifo(run.path / "pipe")
    assert problem_of(run.path / "pipe", run, tmp_path) == "no file but a pipe, a socket or a device"


def test_one_file_that_cannot_be_read_does_not_keep_the_others_away(run, tmp_path, monkeypatch):
    """A stale file handle ended it all, and was told as an archive that cannot be written."""
    opened = packing._opened

    class Stale:
        def __init__(self, path):
            self._file = opened(path)
            self.fileno = self._file.fileno

        def __enter__(self):
            return self

        def __exit__(self, *args):
            self._file.close()

        def read(self, _):
            raise OSError(errno.ESTALE, "Stale file handle")

    def open_some(path):
        return Stale(path) if path == run.rank_log(1, 0) else opened(path)

    monkeypatch.setattr(packing, "_opened", open_some)
    assert problem_of(run.rank_log(1, 0), run, tmp_path) == "Stale file handle"


def test_a_folder_that_cannot_be_listed_is_told_of(run, tmp_path, monkeypatch):
    locked = run.path / "profiles"
    locked.mkdir()
    listed = os.scandir

    def scandir(path):
        if os.fspath(path) == str(locked):
            raise PermissionError(errno.EACCES, "Permission denied", str(locked))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert problem_of(locked, run, tmp_path) == "a folder that cannot be listed: Permission denied"


def test_it_is_written_whole_or_not_at_all(run, tmp_path):
    target = tmp_path / "out" / "r.tar.gz"
    target.parent.mkdir()
    target.write_text("an earlier one")

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        packing.pack(run, target, Cleaner(), {}, stop)
    assert target.read_text() == "an earlier one"
    assert list(target.parent.iterdir()) == [target]


def test_archive_to_an_impossible_place_leaves_nothing(run, tmp_path):
    with pytest.raises(UsageError, match="cannot write"):
        packing.pack(run, tmp_path / "none" / "r.tar.gz", Cleaner(), {}, lambda done, total: None)


def test_an_archive_inside_the_run_does_not_hold_itself(run):
    target = run.path / "r.tar.gz"
    packed(run, target)
    _, files = packed(run, target)
    assert "r.tar.gz" not in files


@given(st.binary(max_size=2000))
def test_a_log_without_secrets_is_in_it_as_it_was(content):
    with tempfile.TemporaryDirectory() as place:
        folder = RunFolder(Path(place, "r"))
        folder.logs(1).mkdir(parents=True)
        folder.rank_log(1, 0).write_bytes(content)
        entries, files = packed(folder, Path(place, "r.tar.gz"))
        (row,) = [entry for entry in entries if entry.path == "logs/attempt-1/rank-00000.log"]
        assert row.removed or files[row.path] == content
