"""Secrets in the settings of a run: nothing that it leaves behind holds one."""

import re
import time

import pytest
from conftest import ANALYTIC, tree
from hypothesis import given
from hypothesis import strategies as st
from ledger import shows

import taqdit
from taqdit import config
from taqdit.store import secrets
from taqdit.store.secrets import mask_settings

SECRETS = {  # setting -> what must not be written
    "note": "0123456789abcdef" * 2 + "89abcdef",  # in the form of W&B's keys
    "api_key": "plain-secret",  # by the name of the setting
    "words": "correct horse ba",  # the value of a variable with a secret name
    "address": "me:swordfish",  # a login
}
WRITTEN = {**SECRETS, "address": f"https://{SECRETS['address']}@host/x"}
PAIR = "pair={" + ",".join(f"{name}:'{value}'" for name, value in WRITTEN.items()) + "}"
SETTINGS = [each for each in ANALYTIC if not each.startswith("tracking")]


@shows("P18", "settings of a whole run that hold a secret: in no record, event, log or page")
def test_no_file_of_a_run_holds_a_secret_of_its_settings(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MY_PASSWORD", SECRETS["words"])
    run = taqdit.launch([*SETTINGS, "tracking=local", PAIR, f"output_dir={tmp_path}"])
    found = {name: data.decode("utf-8", "replace") for name, data in tree(tmp_path).items()}
    kept = run.folder.relative_to(tmp_path)
    records = ("run.json", "events.jsonl", "report.html")
    for name in (*records, ".hydra/config.yaml", ".hydra/overrides.yaml"):
        assert "***@host/x" in found[f"{kept}/{name}"], name  # the settings are in there, masked
    for secret in SECRETS.values():
        assert [name for name in found if secret in found[name]] == []
        assert secret not in caplog.text
    return len(SECRETS)


SPELLED = {  # an override as it is typed -> as it is kept
    r"+tracking.password='it\'s-my-secret'": "+tracking.password=***",
    r"++tracking.password=it\'s\ mine": "++tracking.password=***",
    "+tracking.password=1_000_000": "+tracking.password=***",
    "+tracking.password=0012345": "+tracking.password=***",
    "+tracking.password=ab": "+tracking.password=***",
    "+tracking.password=first,second": "+tracking.password=***",  # of a sweep
    "+wandb.api_key=[abcde,fghij]": "+wandb.api_key=***",
    r"~tracking.password='it\'s'": "~tracking.password=***",
    r"""pair={note:'it\'s',password:'it\'s, "mine"',cfg:4}""": (
        r"pair={note:'it\'s',password:***,cfg:4}"
    ),
    r"""pair={password:"a\"b"},{password: c\,d }""": "pair={password:***},{password: ***}",
    "pair={credentials:{user:me,word:mine},cfg:4}": "pair={credentials:***",
    "pair={password:str('it is'),cfg:4}": "pair={password:***",
    "pair={x:{token:1_0_0},y:[{secret:abc},{b:1}]}": "pair={x:{token:***},y:[{secret:***},{b:1}]}",
    # what is no secret stays
    "tracking.api_key=null": "tracking.api_key=null",
    "pair={token:'',cfg:4}": "pair={token:'',cfg:4}",
    "prompts.texts=['a key: red','token: x']": "prompts.texts=['a key: red','token: x']",
    "prompts.texts=[a cat]": "prompts.texts=[a cat]",
    "sampler.seed=7": "sampler.seed=7",
}


@pytest.mark.parametrize("override", SPELLED)
def test_a_secret_is_hidden_however_it_is_spelled(override):
    others = f"a.b=1,{override},z=2"  # as `hydra.job.override_dirname` has them
    config = {"hydra": {"overrides": {"task": [override]}, "job": {"override_dirname": others}}}
    for told in (config, [override, others]):
        masked = mask_settings(told, {})
        hydra = masked["hydra"] if told is config else None
        kept = (
            [hydra["overrides"]["task"][0], hydra["job"]["override_dirname"]] if hydra else masked
        )
        assert kept[0] == SPELLED[override]
        assert override == SPELLED[override] or override not in kept[1]


_OLD_TEXT = r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\""
BACKTRACKING = {  # plain patterns that say the same, in a time that grows with the square
    "_NAMED": re.compile(rf"{_OLD_TEXT}|(?P<name>[^][{{}}(),:='\"]+)(?P<is>[:=]\s*)", re.DOTALL),
    "_VALUE": re.compile(rf"(?:{_OLD_TEXT}|\\.|[^][{{}}(),'\"\\])+(?=[,}}])|.*", re.DOTALL),
}
PIECES = [
    "token",
    "key:",
    "a",
    "x1",
    ":",
    "=",
    ",",
    "{",
    "}",
    "[",
    "]",
    "(",
    " ",
    "\n",
    "\\,",
    "\\\\",
]
QUOTED = ["''", "'it\\'s, token: x'", '"a"', '"key=\\"b"']
UNQUOTED = ["'", '"']  # one that is never closed, too


@given(
    st.one_of(
        st.lists(st.sampled_from(PIECES + each), max_size=14).map("".join)
        for each in (QUOTED, UNQUOTED)
    )
)
def test_secrets_are_found_where_plain_patterns_find_them(text):
    with pytest.MonkeyPatch.context() as patch:
        found = [*secrets._typed(f"a={text}")]
        for name, pattern in BACKTRACKING.items():
            patch.setattr(secrets, name, pattern)
        assert found == [*secrets._typed(f"a={text}")]


@pytest.mark.parametrize("begin", ["a=", "a={token:", "a={token:'", "a='"])
@pytest.mark.parametrize("unit", ["abcd", "\\abc", "\\'\\'", "'\\'\\", "[[[["])
def test_a_long_value_takes_no_time_by_the_square_of_its_length(begin, unit):
    """10 ms by its length alone; the patterns above take 10 to 40 s."""
    started = time.process_time()
    mask_settings(begin + unit * 12_500, {})
    assert time.process_time() - started < 3


def test_what_is_typed_and_then_overridden_is_hidden_too():
    told = [r"+a.password='one\'s'", "+a.password=two"]
    assert mask_settings(told, {"a": {"password": "two"}}) == ["+a.password=***"] * 2
    assert mask_settings("a key: red=blue", {}) == "a key: red=blue"  # no override


def test_a_refused_argument_is_told_without_its_secret():
    options = config.compose_config([r"+tracking.password='it\'s-mine'"])
    (problem,) = config.check(options).problems
    assert problem.text.startswith("tracking.password='***' is not an argument of ")
    assert "mine" not in problem.text


SLOW = pytest.mark.slow


@shows("P18", "secrets on a command line, of a run and of a sweep: in no file either", trials=1)
@pytest.mark.parametrize("sweep", [(), pytest.param(("-m", "sampler.seed=0,1"), marks=SLOW)])
def test_what_hydra_writes_down_holds_no_secret(taqdit, tmp_path, sweep):
    """On the terminal a sweep repeats its command line."""
    few = ("sampler.num_trajectories=2", "tracking=local", "analysis=none")
    given = taqdit(*sweep, *SETTINGS, *few, PAIR, MY_PASSWORD=SECRETS["words"])
    assert given.returncode == 0, given.stderr
    files = {name: data.decode("utf-8", "replace") for name, data in tree(tmp_path).items()}
    wanted = ["config.yaml", "overrides.yaml", "hydra.yaml", *(["multirun.yaml"] if sweep else [])]
    for end in wanted:
        texts = [text for name, text in files.items() if name.endswith(f"/{end}")]
        assert texts
        assert all("***" in text for text in texts), end
    for secret in SECRETS.values():
        assert [path for path, text in files.items() if secret in text] == []
        told = [line for line in given.stdout.splitlines() if "[HYDRA]" not in line]
        assert secret not in "".join(told) + given.stderr
