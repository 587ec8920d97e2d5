"""What the sources must not hold, and what importing the package must not do."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import stablediag

ROOT = Path(__file__).parents[2]
FOLDERS = ("stablediag", "figures", "reproduce", "synthetic")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))

#: parts of a machine's path that no source has a reason to name
MACHINE_PATHS = re.compile(r"""["'\s(=](?:/(?:home|root|Users|work|tmp|mnt|scratch)/|[A-Z]:\\\\)""")


def findings(source: str) -> list[str]:
    """Unsafe imports, calls and keywords of a Python source, with their lines."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        if any(
            name.split(".")[0] in ("pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve") for name in names
        ):
            found.append(f"{node.lineno}: imports {', '.join(names)}")
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            keywords = {word.arg: word.value for word in node.keywords}
            if called in ("torch.load", "torch.save", "joblib.load", "eval", "exec", "os.system", "pd.read_pickle"):
                found.append(f"{node.lineno}: calls {called}")
            if called in ("yaml.unsafe_load", "yaml.full_load") or (called == "yaml.load" and not _safe_loader(node)):
                found.append(f"{node.lineno}: {called} without the safe loader")
            for word in ("allow_pickle", "shell", "trust_remote_code"):
                if word in keywords and ast.unparse(keywords[word]) != "False":
                    found.append(f"{node.lineno}: {word}={ast.unparse(keywords[word])}")
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                named = isinstance(key, ast.Constant) and key.value in ("trust_remote_code", "allow_pickle", "shell")
                if named and ast.unparse(value) != "False":
                    found.append(f"{node.lineno}: {ast.unparse(node)}")
    return found


def _safe_loader(call: ast.Call) -> bool:
    """`_Loader` is the spec reader's own subclass of SafeLoader."""
    given = [ast.unparse(word.value) for word in call.keywords if word.arg == "Loader"]
    given += [ast.unparse(argument) for argument in call.args[1:2]]
    return given in (["yaml.SafeLoader"], ["yaml.CSafeLoader"], ["_Loader"])


def test_there_are_sources():
    assert len(SOURCES) > 30


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_sources_are_safe_and_portable(path):
    source = path.read_text(encoding="utf-8")
    assert findings(source) == []
    assert MACHINE_PATHS.findall(source) == []


@pytest.mark.parametrize(
    "planted",
    [
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.load('x')",
        "np.load('x', allow_pickle=True)",
        "yaml.load(text)",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.unsafe_load(text)",
        "subprocess.run('ls', shell=True)",
        "AutoModel.from_pretrained('x', trust_remote_code=True)",
        "common = {'trust_remote_code': True}",
        "eval('1')",
    ],
)
def test_the_search_finds_what_is_planted(planted):
    assert findings(planted) != []


def test_the_search_finds_paths_and_passes_what_is_right():
    assert MACHINE_PATHS.findall('open("/home/me/x")')
    assert MACHINE_PATHS.findall("Path('/{}/x')".format("work"))
    assert not MACHINE_PATHS.findall('"https://host/home/x", "/proc/mounts"')
    assert findings("yaml.load(t, Loader=_Loader)\nf(trust_remote_code=False)\nnp.load(f, allow_pickle=False)") == []


def test_the_spec_reader_builds_on_the_safe_loader():
    import yaml

    from stablediag.spec import load as module  # noqa: F401
    from stablediag.spec.load import _Loader

    assert issubclass(_Loader, yaml.SafeLoader)


def test_every_public_name_resolves():
    for name in stablediag.__all__:
        assert getattr(stablediag, name) is not None
    assert set(stablediag.__all__) <= set(dir(stablediag))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = stablediag.no_such_name


def test_what_imports_torch():
    """One process imports one module after the other and says after which torch or transformers was there."""
    light = ["stablediag", "stablediag.types", "stablediag.errors", "stablediag.cli", "stablediag.spec"]
    light += [
        "stablediag.store.run",
        "stablediag.store.export",
        "stablediag.store",
        "stablediag.data",
        "stablediag.stats",
    ]
    light += [f"stablediag.stats.{path.stem}" for path in sorted((ROOT / "stablediag/stats").glob("[a-z]*.py"))]
    light += ["stablediag.plots"] if (ROOT / "stablediag/plots.py").exists() else []
    light += ["stablediag.testbed", "stablediag.testbed.streams"]
    code = (
        "import sys, json, importlib, signal, logging, os\n"
        "before = (signal.getsignal(signal.SIGINT), list(logging.root.handlers), dict(os.environ))\n"
        "found = {}\n"
        f"for name in {light!r}:\n"
        "    importlib.import_module(name)\n"
        "    found[name] = [heavy for heavy in ('torch', 'transformers') if heavy in sys.modules]\n"
        "after = (signal.getsignal(signal.SIGINT), list(logging.root.handlers), dict(os.environ))\n"
        "print(json.dumps([found, before == after]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found, untouched = json.loads(done.stdout)
    assert {name: heavy for name, heavy in found.items() if heavy} == {}
    assert untouched
