"""Let threads that share a model or a tokenizer take turns."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from typing import Any
from weakref import WeakKeyDictionary

_locks: WeakKeyDictionary[Any, AbstractContextManager[Any]] = WeakKeyDictionary()


def turn(shared: Any) -> AbstractContextManager[Any]:
    """Return a context that one thread at a time enters for this object.

    The lock is kept beside the object and not in it: models are copied and pickled, locks are not.
    """
    return _locks.setdefault(shared, threading.RLock())
