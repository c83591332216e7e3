"""Builds the real argument parser of an engine from its unpacked wheel and reports on it.

The wheel's own code runs; modules that are not installed (torch and the like) are replaced by
stand-ins, so no GPU and no engine installation is needed. Three verbs:

    probe.py ENGINE ROOT table          the options as TSV: flag, takes, deprecated, choices
    probe.py ENGINE ROOT unpack WHEEL   the Python sources of a wheel, into ROOT
    probe.py ENGINE ROOT check < FILE   one JSON list of arguments a line; answers ok or the error

ENGINE is sglang or vllm, ROOT the folder that holds the package.
"""

import argparse
import contextlib
import importlib
import importlib.abc
import importlib.machinery
import io
import json
import os
import sys
import types
import zipfile


class Meta(type):
    """Makes the stand-in usable wherever a class or value of an absent library is."""

    def __getattr__(cls, name):
        if name.startswith("__") and name not in ("__version__", "__file__"):
            raise AttributeError(name)
        if name in ("__version__", "version"):
            return "99.0.0"
        # Namespaces of registered operators are asked for as text.
        return name if name == "ns" else stand_in(name)

    def __getitem__(cls, _):
        return cls

    def __setitem__(cls, _, value):
        pass

    def __iter__(cls):
        return iter(())

    def __len__(cls):
        return 0

    def __bool__(cls):
        return False

    def __or__(cls, other):
        return cls

    __ror__ = __add__ = __radd__ = __sub__ = __mul__ = __floordiv__ = __and__ = __or__
    __truediv__ = __mod__ = __lshift__ = __rshift__ = __or__

    def __lt__(cls, other):
        return False

    __gt__ = __le__ = __ge__ = __lt__

    def __int__(cls):
        return 0

    __index__ = __int__

    def __contains__(cls, _):
        return False

    def __instancecheck__(cls, _):
        return False

    def __subclasscheck__(cls, _):
        return False


class Base(metaclass=Meta):
    def __new__(cls, *args, **kwargs):
        # A stand-in called as a decorator hands back what it was given.
        if cls.__module__ == __name__ and len(args) == 1 and not kwargs and callable(args[0]):
            return args[0]
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __init_subclass__(cls, **kwargs):
        pass

    @classmethod
    def __get_pydantic_core_schema__(cls, source, handler):
        from pydantic_core import core_schema

        return core_schema.any_schema()

    def __call__(self, *args, **kwargs):
        return args[0] if len(args) == 1 and callable(args[0]) else Base()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return name if name == "ns" else stand_in(name)

    def __setitem__(self, _, value):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False

    def __iter__(self):
        return iter(())

    def __bool__(self):
        return False

    def __getitem__(self, _):
        return Base()

    def __len__(self):
        return 0

    def __index__(self):
        return 0

    def __lt__(self, _):
        return False

    __gt__ = __le__ = __ge__ = __lt__

    def __add__(self, other):
        return self

    __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __or__ = __and__ = __add__


def stand_in(name):
    return Meta(name, (Base,), {"__module__": __name__, "__doc__": ""})


class Absent(types.ModuleType):
    def __getattr__(self, name):
        if name == "__version__":
            return "99.0.0"
        if name.startswith("__") or name in NO_DEVICE:
            raise AttributeError(name)
        value = stand_in(name)
        setattr(self, name, value)
        return value


class Shells(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Comes first: runs of the engine only what defines options, and stands in for the rest."""

    def __init__(self, package, root):
        self.package = package
        self.root = root

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] != self.package:
            return None
        real = REAL[self.package]
        if name not in UNREAL and any(name == module or name.startswith(module + ".") for module in real):
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        module = Absent(spec.name)
        # Real modules below a stand-in package are still found.
        module.__path__ = [self.root + "/" + spec.name.replace(".", "/")]
        return module

    def exec_module(self, module):
        pass


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Comes last: stands in for every library that is not installed."""

    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names or top in NEVER:
            return None
        # Parts that an installed library lacks are its own business.
        if top != name and not isinstance(sys.modules.get(top), Absent):
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        module = Absent(spec.name)
        module.__path__ = []
        return module

    def exec_module(self, module):
        pass


# The modules that define options, and what they need to do so.
REAL = {
    "sglang": [
        "sglang.srt.server_args",
        "sglang.srt.arg_groups",
        "sglang.srt.environ",
        "sglang.srt.model_executor.cuda_graph_config",
        "sglang.srt.utils.msgspec_utils",
        "sglang.srt.lora.lora_registry",
    ],
    "vllm": [
        "vllm.config",
        "vllm.engine.arg_utils",
        "vllm.entrypoints.openai.cli_args",
        "vllm.entrypoints.launchers.cli_args",
        "vllm.entrypoints.common.cli_args",
        "vllm.utils.argparse_utils",
        "vllm.utils.hashing",
        "vllm.utils.import_utils",
        "vllm.utils.collection_utils",
        "vllm.envs",
        "vllm.logger",
        "vllm.logging_utils",
        "vllm.plugins",
        "vllm.version",
        "vllm.sampling_params",
    ],
}

# Modules among them that reach into kernels when they are loaded.
UNREAL = {"vllm.config.quantization"}

# Backends of torch that this machine does not have.
NO_DEVICE = {"npu", "xpu", "hpu", "musa", "mps", "mlu", "hip"}

# Optional accelerators whose absence the engines handle better than a stand-in.
NEVER = {"aiter", "torch_npu", "intel_extension_for_pytorch", "amdsmi", "torch_xla", "habana_frameworks"}


def parser_of(engine, root):
    if engine == "sglang":
        from sglang.srt.server_args import ServerArgs

        parser = argparse.ArgumentParser(prog="sglang")
        ServerArgs.add_cli_args(parser)
        return parser
    platform = Base()
    platform.device_type = "cuda"
    importlib.import_module("vllm.platforms").current_platform = platform
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    # The module moved from openai to launchers (0.29) to common.
    places = ["common", "launchers", "openai"]
    file = "vllm/entrypoints/{}/cli_args.py"
    found = [name for name in places if os.path.exists(os.path.join(root, file.format(name)))]
    place = f"vllm.entrypoints.{found[0]}.cli_args"
    make_arg_parser = importlib.import_module(place).make_arg_parser

    parser = FlexibleArgumentParser(prog="vllm serve")
    # `vllm serve` adds its positional model itself.
    made = make_arg_parser(parser)
    if not any(action.dest == "model_tag" for action in made._actions):
        made.add_argument("model_tag", nargs="?")
    return made


def takes(action):
    if isinstance(action, argparse.BooleanOptionalAction) or action.nargs == 0:
        return "none"
    if action.nargs in ("+", "*") or isinstance(action.nargs, int):
        return "several"
    return "optional" if action.nargs == "?" else "one"


def table(parser):
    rows = []
    for action in parser._actions:
        for flag in action.option_strings or [""]:
            text = (action.help or "") if isinstance(action.help, str) else ""
            old = bool(getattr(action, "deprecated", False)) or "eprecated" in type(action).__name__
            old = old or text.lower().lstrip("[( ").startswith("deprecated")
                # A list of choices that a stand-in left empty says nothing.
            choices = [] if action.choices is None else [str(choice) for choice in action.choices]
            if not flag and action.dest != "model_tag":
                continue
            rows.append((flag, takes(action), "deprecated" if old else "", "|".join(sorted(choices))))
    for row in sorted(set(rows)):
        print("\t".join(row))


def check(parser):
    for action in parser._actions:
        if action.choices is not None and not list(action.choices):
            action.choices = None
    for line in sys.stdin:
        argv = json.loads(line)
        errors = io.StringIO()
        try:
            with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
                _, left = parser.parse_known_args(argv)
            print("ok" if not left else f"unknown arguments {left}")
        except SystemExit:
            print("error: " + errors.getvalue().strip().splitlines()[-1])


def main():
    engine, root, verb = sys.argv[1:4]
    if verb == "unpack":
        with zipfile.ZipFile(sys.argv[4]) as wheel:
            names = [name for name in wheel.namelist() if name.endswith(".py")]
            wheel.extractall(root, [name for name in names if name.startswith(engine + "/")])
        return
    sys.path.insert(0, root)
    sys.meta_path.insert(0, Shells(engine, root))
    sys.meta_path.append(Finder())
    with contextlib.redirect_stdout(sys.stderr):
        parser = parser_of(engine, root)
    if verb == "table":
        table(parser)
    else:
        check(parser)


if __name__ == "__main__":
    main()
