"""The mine command, end to end."""

import json

from click.testing import CliRunner

from reranker_ft.cli.main import main
from tests.reranker_ft.conftest import toy_rows


def run(*arguments, input=None, code=0):
    """Runs a command and returns its result, once the exit code is as expected."""
    result = CliRunner().invoke(main, [str(a) for a in arguments], input=input)
    assert result.exit_code == code, result.output
    if result.exception is not None:
        assert isinstance(result.exception, SystemExit), result.exception
    return result


def test_mine(model_folders, write_jsonl, tmp_path):
    data, output = write_jsonl(toy_rows(12)), tmp_path / "mined.jsonl"
    common = ["mine", "--input_file", data, "--output_file", output, "--negative_number", 3]
    result = run(*common, "--range_for_sampling", "0-30", "--json")
    fields = json.loads(result.stdout)
    assert (fields["queries"], fields["mined"] + fields["filled"]) == (12, 36)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert all(len(row["neg"]) == 3 and not set(row["neg"]) & set(row["pos"]) for row in rows)
    guarded = run(
        *common,
        *("--overwrite", "--range-for-sampling", "0-30", "--no-fill-random", "--devices", "cpu"),
        *("--reranker", model_folders(), "--margin", "0.5"),
    )
    assert "refused as likely positives" in guarded.stdout
    pool = tmp_path / "pool.txt"
    pool.write_text("".join(f"pool passage {i}\n" for i in range(30)))
    run(*common, "--overwrite", "--candidate_pool", pool)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert all(text.startswith("pool passage") for row in rows for text in row["neg"])
    assert "without --reranker" in run(*common, "--margin", 1, code=2).stderr


def test_mine_with_an_encoder(model_folders, write_jsonl, tmp_path):
    data, output = write_jsonl(toy_rows(12)), tmp_path / "mined.jsonl"
    run(
        *("mine", "--input_file", data, "--output_file", output, "--range_for_sampling", "1-20"),
        *("--embedder_name_or_path", model_folders(), "--pooling_method", "mean"),
        *("--devices", "cpu", "--negative_number", 4),
    )
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [len(row["neg"]) for row in rows] == [4] * 12


def test_what_flag_embedding_s_mining_takes_is_accepted(write_jsonl, tmp_path):
    files = ["--input_file", write_jsonl(toy_rows(6)), "--output_file", tmp_path / "out.jsonl"]
    flags = ["--use_gpu_for_searching", "True", "--search_batch_size", 64]
    run("mine", *files, *flags, "--range_for_sampling", "0-9", "--negative_number", 2)
    run("mine", *files, "--use_gpu_for_searching", "--overwrite", "--range_for_sampling", "0-9")
