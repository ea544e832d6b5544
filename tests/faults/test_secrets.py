"""Secrets in the settings of a run: nothing that it leaves behind holds one."""

import pytest
from conftest import ANALYTIC, tree
from ledger import shows

import taqdit

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


@shows("P18", "secrets on a command line, of a run and of a sweep: in no file either", trials=1)
@pytest.mark.parametrize("sweep", [(), ("-m", "sampler.seed=0,1")])
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
