"""`unbraid heads` on a tiny model in a local folder: the same numbers as the taps, files, and what it refuses."""

import io
import json

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from support.tiny import WORDS, write_tiny_llama
from unbraid import attach, taps
from unbraid.cli import main


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "text.txt").write_text("the cat sat on a mat")

    def call(*words):
        with pytest.raises(SystemExit) as left:
            main([str(word) for word in words])
        caught = capsys.readouterr()
        return left.value.code, caught.out, caught.err

    return call


def test_numbers_are_those_of_the_taps(cli, model_folder, tmp_path):
    line = ["heads", model_folder, "--text", "text.txt", "--taps", "entropy,received", "--check", "2", "--json", "-q"]
    code, out, err = cli(*line)
    assert code == 0, err
    printed = json.loads(out)
    rows = printed["result"]["tables"]["heads"]
    assert len(rows["rows"]) == 8
    assert (tmp_path / printed["page"]).is_file()
    assert any("Spot check" in note for note in printed["result"]["notes"])

    from unbraid import Result

    model = LlamaForCausalLM.from_pretrained(model_folder)
    entropy, received = taps.Entropy(), taps.Received()
    with attach(model, entropy, received), torch.no_grad():
        model(input_ids=torch.tensor([[1, 2, 3, 4, 5, 6]]))
    saved = Result.load(tmp_path / printed["folder"])
    np.testing.assert_allclose(saved.arrays["entropy"], entropy.scores().array, atol=1e-6)
    np.testing.assert_allclose(saved.arrays["received"], received.scores().array, atol=1e-6)
    best = dict(zip(rows["columns"], rows["rows"][0], strict=True))
    head, value = entropy.scores().ranked()[0]
    assert best["head"] == entropy.scores().label(head)
    assert best["entropy"] == pytest.approx(value, abs=1e-6)
    assert best["most attended token"] == repr(WORDS[best["at"]])


def test_a_table_a_page_and_standard_input(cli, model_folder, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("the cat sat on a mat and then it saw another cat on a mat"))
    code, out, err = cli("heads", model_folder, "--text", "-", "--taps", "distance", "--out", "mine", "--top", "3")
    assert code == 0, err
    assert "the text has 15 tokens; the first 12 are used" in err
    assert "heads: 3 of 8 rows" in out
    assert "Page: mine/index.html" in out


def test_sites_and_length_choose(cli, model_folder):
    code, out, _ = cli("heads", model_folder, "--text", "text.txt", "--sites", "*.1.*", "--length", "3", "--json", "-q")
    assert code == 0
    result = json.loads(out)["result"]
    assert result["params"]["tokens"] == 3
    assert len(result["tables"]["heads"]["rows"]) == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--text", "none.txt"], "none.txt cannot be read (No such file or directory)"),
        (["--text", "empty.txt"], "empty.txt holds no text."),
        (["--text", "latin.txt"], "latin.txt is not UTF-8 text"),
        (["--text", "text.txt", "--taps", "magic"], "There is no tap 'magic'; choose from argmax"),
        (["--text", "text.txt", "--taps", ","], "--taps names none"),
        (["--text", "text.txt", "--sites", "*.mlp_x.*"], "matches no module"),
        (["--text", "text.txt", "--out", "."], "already holds files"),
    ],
)
def test_bad_input_is_one_sentence(cli, model_folder, tmp_path, words, said):
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    code, out, err = cli("heads", model_folder, *words, "-q")
    assert (code, out) == (2, "")
    assert said in err
    assert err.startswith("unbraid: ")
    assert "Traceback" not in err
    assert not list(tmp_path.glob("runs/*/*"))


def test_a_model_that_does_not_exist_is_one_sentence(cli):
    code, _, err = cli("heads", "no-such-model", "--text", "text.txt", "-q")
    assert code == 2
    assert "no-such-model" in err
