"""A task of mteb's classes, built from local JSONL."""

import json


def local_task(path, *, name="LocalTask", candidates=True, identical=False):
    """A task of the queries of a JSONL file: their passages are the corpus, one is graded 2."""
    from datasets import Dataset
    from mteb.abstasks import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    class Local(AbsTaskRetrieval):
        ignore_identical_ids = identical
        metadata = TaskMetadata(
            name=name, type="Reranking" if candidates else "Retrieval", main_score="ndcg_at_10",
            description="Made for a test.", dataset={"path": "NA", "revision": "NA"},
            category="t2t", eval_splits=["test"], eval_langs=["eng-Latn"], modalities=["text"],
        )  # fmt: skip

        def load_data(self, num_proc=None, **_):
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            corpus, judged, ranked = [], {}, {}
            for number, row in enumerate(rows):
                keys = [f"{number}-{i}" for i in range(len(row["pos"] + row["neg"]))]
                texts = zip(keys, row["pos"] + row["neg"], strict=True)
                corpus += [{"id": key, "title": "red", "text": text} for key, text in texts]
                judged[f"q{number}"] = {keys[0]: 2, keys[1]: 1, keys[2]: 0}
                ranked[f"q{number}"] = keys[1:] if number % 2 else keys
            queries = [{"id": f"q{i}", "text": row["query"]} for i, row in enumerate(rows)]
            self.dataset = {
                "default": {
                    "test": {
                        "corpus": Dataset.from_list(corpus),
                        "queries": Dataset.from_list(queries),
                        "relevant_docs": judged,
                        "top_ranked": ranked if candidates else None,
                    }
                }
            }
            self.data_loaded = True

    return Local()


def bitext_task():
    """A task that ranks nothing; its data are on the Hub and stay there."""
    import mteb

    return mteb.get_task("BUCC.v2")
