"""The child process that writes MLflow does not run what lies about in the user's folder."""

from __future__ import annotations

from mlflow_green.tracking.child import TrackingChild


def test_a_file_in_the_working_folder_does_not_pass_for_a_module(tmp_path, monkeypatch):
    for name in ("mlflow", "argparse", "html"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    child = TrackingChild("sqlite:///none.db", ["--help"], wake=lambda: None, say=lambda _text: None)
    child.close(60)
    assert child.last_line, "the child said nothing, so it did not come as far as its options"
    assert not (tmp_path / "ran").exists()
