"""transformers without what a single CPU process never uses: about half of its start-up time.

transformers imports at start what only some of its models or some launches need: torch's compiler (for marks on
functions that must not be compiled), tensor- and pipeline-parallel loading, scipy and scikit-learn. For an evaluation
that takes seconds they are most of its time. `lean_transformers` makes three changes before it is imported:

* transformers' own availability functions say that the parallel parts, scipy, scikit-learn and torchvision (which wants
  the compiler) are absent, a case that it supports;
* torch's compiler, and what spreads models over ranks, are `Deferred` modules: the compiler's marks do nothing, nothing
  is an instance of the others' classes, anything else imports the real one;
* what its models export is remembered from one start to the next (`guardrail.models.import_structure`).

Only where nothing of it can matter: this process is one of our entry points (never a program that uses the library),
is alone, has no GPU and does not use vLLM. Everywhere else transformers is imported as it comes.
``GUARDRAIL_LEAN_IMPORTS=0`` turns it off.

Known limits: inside such a process transformers' own tensor parallelism, its object-detection losses, fast image
processors and assisted generation are not there, and ``torch.compile`` would not see transformers' marks. transformers
4 loads the compiler with its first mask of a padded batch, so there only the start is shorter.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import types
import typing
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from typing import Any

from guardrail.core import cli
from guardrail.core.ranks import world_size
from guardrail.models.import_structure import remember_structure

SWITCH = "GUARDRAIL_LEAN_IMPORTS"
COMPILER = "torch._dynamo"
MARKS = ("allow_in_graph", "assume_constant_result", "disable", "disallow_in_graph")
MASKS = f"{COMPILER}._trace_wrapped_higher_order_op"
SHARDED = "torch.distributed.fsdp"
SPREAD = "torch.distributed.tensor"
ABSENT = ("is_torch_distributed_available", "is_scipy_available", "is_sklearn_available", "is_torchvision_available")
BEFORE = ("transformers.utils", "guardrail.generation.vllm_engine", "vllm", "deepspeed", COMPILER)


def has_gpu() -> bool:
    """Whether this process may see a GPU, by the device files: no torch needed."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return not hidden and any(os.path.exists(device) for device in ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg"))


def applies() -> bool:
    """Whether this process may do without the parallel and the compiled parts (see the module's text)."""
    if os.environ.get(SWITCH) == "0" or not cli.owns_process or world_size() > 1 or has_gpu():
        return False
    return not any(name in sys.modules for name in BEFORE)


def lean_transformers() -> None:
    """Call before transformers is imported: where `applies` says so, it is imported in short."""
    if not applies():
        return
    import torch  # noqa: F401  the deferred modules are its own

    deferred: dict[str, dict[str, Any]] = {
        COMPILER: {
            **dict.fromkeys(MARKS, mark),
            "eval_frame": types.SimpleNamespace(OptimizedModule=_NoInstance),  # asked for when a model is saved
            "graph_break": _nothing,  # called by every optimizer step
            "trace_rules": types.SimpleNamespace(clear_lru_cache=_nothing),  # by every start of a process group
        },
        MASKS: {"TransformGetItemToIndex": _index_transform},
        # asked for when a model is saved: is it, or a tensor of it, spread over several ranks?
        SPREAD: {"DTensor": _NoInstance},
        SHARDED: {"FullyShardedDataParallel": _NoInstance},
        f"{SHARDED}.fully_sharded_data_parallel": {"FullyShardedDataParallel": _NoInstance},
    }
    for name, answers in deferred.items():
        if name not in sys.modules:
            sys.modules[name] = Deferred(name, answers)
    sys.meta_path.insert(0, _Inside())
    remember_structure()
    _say_absent(*ABSENT)


def import_schedules() -> types.ModuleType:
    """``transformers.optimization``; after `lean_transformers` without peft, which only transformers' Trainer uses."""
    if not isinstance(sys.modules.get(COMPILER), Deferred):
        return importlib.import_module("transformers.optimization")
    kept = _say_absent("is_peft_available")
    try:
        return importlib.import_module("transformers.optimization")
    finally:
        for place, name, function in kept:
            setattr(place, name, function)


def import_rouge() -> types.ModuleType:
    """``rouge_score.rouge_scorer``; in a process of ours without what nltk imports for other parts of itself: scipy,
    scikit-learn and with them pandas. nltk does without them where they are not installed, and ROUGE takes only its
    stemmer, so scores are the same."""
    heavy = ("scipy", "sklearn", "pandas") if cli.owns_process and os.environ.get(SWITCH) != "0" else ()
    hidden = [name for name in heavy if name not in sys.modules and "nltk" not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: an import of it fails
    try:
        from rouge_score import rouge_scorer

        return typing.cast(types.ModuleType, rouge_scorer)
    finally:
        for name in hidden:
            del sys.modules[name]


def _say_absent(*names: str) -> list[tuple[types.ModuleType, str, Any]]:
    """Make transformers' availability functions ``names`` say no; returns what they were."""
    import transformers.utils

    places = (transformers.utils, transformers.utils.import_utils)
    kept = [(place, name, getattr(place, name)) for place in places for name in names if hasattr(place, name)]
    for place, name, _ in kept:
        setattr(place, name, _absent)
    return kept


class Deferred(types.ModuleType):
    """A module that is imported when a name is wanted that is not among ``answers``."""

    def __init__(self, name: str, answers: dict[str, Any]) -> None:
        super().__init__(name)
        self.__dict__.update(answers, __spec__=ModuleSpec(name, None), __path__=[])  # `_Inside` finds what is in it

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(real(self.__name__), name)


def real(name: str) -> types.ModuleType:
    """The module itself, imported now if `Deferred` stands in its place."""
    if isinstance(sys.modules.get(name), Deferred):
        del sys.modules[name]
    return importlib.import_module(name)


class _Inside:
    """Finds the submodules of a deferred package: imports the package itself, then hands out what is there."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        package = name.rpartition(".")[0]
        if not isinstance(sys.modules.get(package), Deferred):
            return None
        real(package)
        module = sys.modules.get(name)
        if module is None:
            return importlib.util.find_spec(name)
        return ModuleSpec(name, _Found(module))  # type: ignore[arg-type]


class _Found:
    """Loader of a module that is loaded already."""

    def __init__(self, module: types.ModuleType) -> None:
        self.module, self.spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        return self.module

    def exec_module(self, module: types.ModuleType) -> None:
        module.__spec__ = self.spec


def mark(function: Any = None, *_arguments: Any, **_options: Any) -> Any:
    """A mark for the compiler that marks nothing, with or without arguments."""
    return (lambda marked: marked) if function is None else function


class _NoInstance:
    """In place of a class of a module that was never imported: nothing can be an instance of it."""


def _nothing(*_arguments: Any, **_options: Any) -> None:
    """What ``graph_break`` does where nothing is compiled."""


def _absent(*_arguments: Any, **_options: Any) -> bool:
    return False


def _index_transform(*arguments: Any, **options: Any) -> Any:
    transform: Callable[..., Any] = real(MASKS).TransformGetItemToIndex
    return transform(*arguments, **options)
