"""The audit: one call, a page, data for programs, warnings in words; and the command."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from metrics.worlds import SIZES, encoder, sample
from support.dummy import code_blocks
from unbraid.cli.app import main
from unbraid.core.errors import UnbraidError
from unbraid.core.result import Result
from unbraid.metrics import disentanglement as dis


def decode(z):
    y, x = np.mgrid[-1:1:12j, -1:1:12j]
    blobs = [((x - a[0] / 2) ** 2 + (y - a[1] / 2) ** 2 < 0.2) * 1.0 for a in z]
    return np.stack(blobs)[:, None]


@pytest.fixture(scope="module")
def audited():
    z, v = sample("noise", 900)
    spoilt = np.column_stack([z[:, :6], z[:, 0] * 2, 1e-3 * z[:, 5]])
    return dis.audit(spoilt, v, list("abcde"), decode=decode, preset="fast", learner="rf", progress=False)


def test_all_scores_with_intervals_in_one_table(audited):
    rows = {row["metric"]: row for row in audited.tables["scores"].records}
    expected = {"beta_vae", "factor_vae", "mig", "mig_sup", "dcimig", "jemmig", "modularity", "modularity_floor"}
    expected |= {"dci_d", "dci_c", "dci_i", "sap_svm", "sap_r2", "explicitness", "irs", "infom", "infoe", "infoc"}
    expected |= {"downstream_10", "downstream_100", "tc", "wasserstein", "mi_score"}
    assert set(rows) == expected
    for name, row in rows.items():
        if isinstance(row["value"], float) and name != "tc":
            assert row["low"] <= row["value"] <= row["high"], name
    assert rows["tc"]["value"] == "infinite"
    assert rows["dci_d"]["estimator"] == "dci_d[rf,n_estimators=20]"


def test_warnings_name_what_is_wrong(audited):
    told = {row["code"]: row["warning"] for row in audited.tables["warnings"].records}
    assert {"noise_codes", "collapsed", "duplicated", "buckets", "few_rows", "sap_level"} <= set(told)
    assert "z7" in told["collapsed"]
    assert "z0 and z6" in told["duplicated"]
    assert "z5" in told["noise_codes"]


def test_maps_traversals_and_files(audited, tmp_path):
    kinds = [figure.kind for figure in audited.figures]
    assert kinds == ["image", "bars", "heat_map", "heat_map", "heat_map", "heat_map"]
    assert audited.arrays["information"].shape == (8, 5)
    assert audited.arrays["information"].argmax(axis=0).tolist() in ([0, 1, 2, 3, 4], [6, 1, 2, 3, 4])
    audited.save(tmp_path / "a")
    assert Result.load(tmp_path / "a") == audited
    page = (tmp_path / "a" / "index.html").read_text(encoding="utf-8")
    assert "Traversals" in page
    assert "Heat map of" in page
    data = json.loads((tmp_path / "a" / "result.json").read_text(encoding="utf-8"))
    assert data["tables"]["scores"]["rows"]


def test_encoders_blocks_cycles_and_posteriors():
    z, v = sample("perfect", 600)
    found = dis.audit(z, v, preset="fast", learner="rf", encode=encoder("perfect"), sizes=SIZES, logvar=-6 + 0 * z)
    rows = {row["metric"]: row for row in found.tables["scores"].records}
    assert {"z_max_var", "mig_posterior"} <= set(rows)
    assert rows["factor_vae"]["estimator"] == "factor_vae[encode]"
    blocked = dis.audit(z, v, None, [(0, 2), (2, 5)], preset="fast", learner="rf", cycles={"f1": 6})
    assert blocked.arrays["information"].shape == (2, 6)
    assert blocked.tables["factors"].records[1]["factor"] == "f1 cos"
    assert "jemmig" not in {row["metric"] for row in blocked.tables["scores"].records}


def test_small_and_odd_data_are_audited_or_refused():
    z, v = sample("perfect", 60)
    given = {"preset": "fast", "learner": "rf"}
    one = dis.audit(z, v[:, :1], **given)
    assert "modularity" not in {row["metric"] for row in one.tables["scores"].records}
    assert "few_rows" in {row["code"] for row in one.tables["warnings"].records}
    still = dis.audit(np.column_stack([z[:, :2], np.zeros(60)]), np.column_stack([v[:, :2], np.zeros(60)]), **given)
    assert "constant_factor" in {row["code"] for row in still.tables["warnings"].records}
    assert "Traceback" not in still.to_html()
    with pytest.raises(UnbraidError, match="collapsed"):
        dis.audit(np.zeros_like(z), v, **given)
    with pytest.raises(UnbraidError, match="of its own"):
        dis.audit(z, np.arange(60), **given)
    with pytest.raises(UnbraidError, match="diverged"):
        dis.audit(z * 1e200, v, **given)


def test_the_same_seed_gives_the_same_numbers():
    z, v = sample("rotated", 500)
    one, two = (dis.audit(z, v[:, :3], preset="fast", learner="rf").tables["scores"] for _ in range(2))
    assert one == two


def test_no_torch_is_imported_and_tensors_are_taken():
    code = "import sys, unbraid.metrics.disentanglement as d; assert not {'torch', 'sklearn'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    import torch

    z, v = sample("perfect", 400)
    assert float(dis.mig(torch.tensor(z, requires_grad=True), torch.tensor(v))) == pytest.approx(float(dis.mig(z, v)))


def run(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(list(map(str, words)))
    said = capsys.readouterr()
    return stopped.value.code, said.out, said.err


@pytest.mark.parametrize("kind", ["npz", "safetensors", "csv", "parquet", "npy"])
def test_the_command_reads_each_format(kind, tmp_path, capsys):
    z, v = sample("perfect", 250)
    v = v[:, :2]
    path, more = tmp_path / f"codes.{kind}", []
    if kind == "npz":
        np.savez(path, z=z, factors=v)
    elif kind == "safetensors":
        from safetensors.numpy import save_file

        save_file({"mu": z, "labels": v}, path)
    elif kind == "npy":
        np.save(path, z)
        np.save(tmp_path / "labels.npy", v)
        more = ["--factors", tmp_path / "labels.npy"]
    else:
        import pandas as pd

        frame = pd.DataFrame(np.column_stack([z, v]), columns=[*"abcde", "shape", "size"])
        frame.to_csv(path, index=False) if kind == "csv" else frame.to_parquet(path)
        more = ["--factors", "shape,size"]
    words = [
        "audit",
        path,
        *more,
        "--preset",
        "fast",
        "--learner",
        "rf",
        "--out",
        tmp_path / "out",
        "--json",
        "--quiet",
    ]
    code, out, err = run(words, capsys)
    assert code == 0, err
    result = json.loads(out)["result"]
    assert result["params"]["rows"] == 250
    assert result["params"]["names"] == (["shape", "size"] if kind in ("csv", "parquet") else ["f0", "f1"])
    assert (tmp_path / "out" / "index.html").is_file()


def test_the_command_says_what_is_wrong(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", other=np.zeros((5, 2)))
    (tmp_path / "t.csv").write_text("a,b\n1,2\n3,x\n")
    (tmp_path / "bad.npz").write_bytes(b"no archive")
    np.savez(tmp_path / "nan.npz", z=np.full((5, 2), np.nan), factors=np.arange(5))
    for words, told in [
        ([tmp_path / "none.npz"], "is not there"),
        ([tmp_path / "a.txt"], "accepted are"),
        ([tmp_path / "a.npz"], "it holds other"),
        ([tmp_path / "bad.npz"], "cannot be read"),
        ([tmp_path / "t.csv"], "name its columns"),
        ([tmp_path / "t.csv", "--factors", "b"], "no table of numbers"),
        ([tmp_path / "nan.npz", "--blocks", "0-2"], "start:stop"),
        ([tmp_path / "nan.npz", "--cycles", "hue"], "name:cycle"),
        ([tmp_path / "nan.npz"], "not finite"),
    ]:
        code, _, err = run(["audit", *words, "--out", tmp_path / "out"], capsys)
        assert code == 2, err
        assert told in err
        assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"preset": "slow"}, "preset"),
        ({"learner": "svm"}, "learner"),
        ({"decode": lambda z: np.zeros(3)}, "decode"),
        ({"cycles": {"hue": 3}}, "hue"),
        ({"names": ["a"]}, "different names"),
    ],
)
def test_an_audit_says_what_is_wrong(change, told):
    z, v = sample("perfect", 120)
    with pytest.raises(UnbraidError, match=told):
        dis.audit(z, v[:, :2], **{"preset": "fast", "learner": "rf", **change})


def test_the_page_on_metrics_runs(tmp_path, monkeypatch, capsys):
    page = (Path(__file__).resolve().parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    code = next(code for language, _, code in code_blocks(page) if language == "python")
    exec(compile(code, "metrics.md", "exec"), {})
    assert (tmp_path / "audit" / "index.html").is_file()
    words = {"score", "interval", "matrix", "active", "estimator", "representation"}
    named = set(re.findall(r"`([a-z_]+)`", page.split("## Three ways")[0].split("## Which metric")[1]))
    assert named - words <= set(dis.__all__)
