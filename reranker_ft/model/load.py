"""Load a trained cross-encoder and its tokenizer from a folder or the Hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

from reranker_ft.errors import ModelError, RerankerError
from reranker_ft.model.quiet_bars import bars_on_terminals_only
from reranker_ft.model.tokenizer import fit_tokenizer, separate_pairs

# Files of which a folder with a tokenizer has one.
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json"),
    *("tokenizer.model", "sentencepiece.bpe.model", "spiece.model", "spm.model"),
)


def load_cross_encoder(
    name_or_path: str | Path,
    *,
    trust_remote_code: bool = False,
    cache_dir: str | None = None,
    sep_token: str | None = None,
) -> tuple[nn.Module, Any]:
    """Load a model that scores pairs, and its tokenizer.

    A PEFT adapter is loaded onto its base and merged.

    Args:
        name_or_path: A folder, or a Hub id.
        sep_token: Goes between query and passage if the tokenizer puts nothing there; ``None``
            leaves the tokenizer as the model was trained with it.

    Returns:
        The model in evaluation mode, on the CPU, in the dtype of its checkpoint; the tokenizer.

    Raises:
        ModelError: Nothing loads from there, the head is not in the checkpoint (transformers would
            draw it at random), it gives more than one score per pair, it is smaller than its
            tokenizer, or the tokenizer takes no separator.
    """
    name = str(name_or_path)
    options = {"trust_remote_code": trust_remote_code, "cache_dir": cache_dir}
    with model_errors(name, cache_dir):
        if is_adapter(name):
            model = load_adapter(name, options).merge_and_unload()
        else:
            model = _load_whole(name, options, saved_elsewhere=())
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_home(name), **options)
    fit_tokenizer(name, model, tokenizer)
    tokenizer = separate_pairs(name, tokenizer, sep_token, fresh=False)
    labels = model.config.num_labels
    if labels != 1:
        raise ModelError(
            f"{name} gives {labels} scores per pair - a reranker gives one - train one from it, or "
            "choose a checkpoint with one label"
        )
    return model.eval(), tokenizer


def load_tokenizer(name_or_path: str) -> Any:
    """Return a model's tokenizer alone.

    Raises:
        ModelError: Nothing loads from there.
    """
    with model_errors(name_or_path):
        return AutoTokenizer.from_pretrained(tokenizer_home(name_or_path))


@contextmanager
def model_errors(name: str, cache_dir: str | None = None) -> Iterator[None]:
    """Turn what transformers raises while it loads ``name`` into a ModelError of one line."""
    try:
        _require_reachable(name, cache_dir)
        yield
    except (RerankerError, ModuleNotFoundError):
        raise
    # A broken file can surface as nearly anything: SafetensorError, RuntimeError, UnpicklingError.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).split("\n")[0].rstrip(" .:")
        raise ModelError(
            f"{name} does not load ({reason}) - a model is a folder that save_pretrained wrote, or "
            "a Hub id - check the path"
        ) from error


def _require_reachable(name: str, cache_dir: str | None) -> None:
    """Refuse at once what is not on this machine while the Hub cannot be reached.

    transformers would ask for one file after the other, six times each, for a minute.

    Raises:
        FileNotFoundError: There is no such folder, and it is no Hub id; or it is not in the cache
            and there is no connection.
    """
    if Path(name).exists():
        return
    try:
        files = ("config.json", "adapter_config.json")
        if not any(try_to_load_from_cache(name, file, cache_dir=cache_dir) for file in files):
            HfApi().model_info(name)
    except HfHubHTTPError:
        return  # transformers says why the Hub refused
    except HFValidationError as error:
        reason = "no such folder here, and no model of the Hub is named so"
        raise FileNotFoundError(reason) from error
    except Exception as error:  # each HTTP library that the Hub's client used has its own types
        raise FileNotFoundError(
            "no such folder here, nothing in the Hub's cache, and no connection to the Hub"
        ) from error


def _load_whole(name: str, options: dict[str, Any], *, saved_elsewhere: tuple[str, ...]) -> Any:
    """Return the model, after making sure that each parameter came from the checkpoint.

    Args:
        saved_elsewhere: Modules whose parameters may be missing, as an adapter brings them.
    """
    with no_load_report():
        model, report = AutoModelForSequenceClassification.from_pretrained(
            name,
            output_loading_info=True,
            # An adapter's base is an encoder without a head, which would get two labels.
            **({"num_labels": 1} if saved_elsewhere else {}),
            **options,
        )
    parameters = {parameter for parameter, _ in model.named_parameters()}
    missing = sorted(
        parameter
        for parameter in parameters & set(report["missing_keys"])
        if not set(parameter.split(".")) & set(saved_elsewhere)
    )
    if missing:
        raise ModelError(
            f"{name} lacks {len(missing)} of {len(parameters)} parameters ({', '.join(missing[:3])}"
            f"{', ...' if len(missing) > 3 else ''}) - scores of random weights mean nothing - "
            "fine-tune it first (reranker-ft train), or name a trained reranker"
        )
    return model


@contextmanager
def no_load_report() -> Iterator[None]:
    """Keep transformers from reporting fresh weights: the caller say or refuse it in a line."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with bars_on_terminals_only():
            yield
    finally:
        logging.set_verbosity(before)


def is_adapter(name: str) -> bool:
    """Whether this is a folder with a PEFT adapter."""
    return (Path(name) / "adapter_config.json").is_file()


def adapter_base(folder: str) -> str:
    """Return what the adapter in this folder was trained on: a folder or a Hub id."""
    from peft import PeftConfig  # noqa: PLC0415 - optional

    return str(PeftConfig.from_pretrained(folder).base_model_name_or_path)


def tokenizer_home(name: str) -> str:
    """Return where the tokenizer is: with the model, or with the base of an adapter without one."""
    if not is_adapter(name) or any((Path(name) / file).is_file() for file in TOKENIZER_FILES):
        return name
    return adapter_base(name)


def load_adapter(folder: str, options: dict[str, Any], *, trainable: bool = False) -> Any:
    """Load a PEFT adapter onto its base.

    Args:
        options: Of from_pretrained, for the base.
        trainable: Whether the adapter is to be trained on.

    Raises:
        ModelError: Its base has no head, and the adapter does not bring one.
    """
    from peft import PeftConfig, PeftModel  # noqa: PLC0415 - optional

    config = PeftConfig.from_pretrained(folder)
    base = _load_whole(
        config.base_model_name_or_path,
        options,
        saved_elsewhere=tuple(config.modules_to_save or ()),
    )
    return PeftModel.from_pretrained(base, folder, is_trainable=trainable)
