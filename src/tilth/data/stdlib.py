"""The Python standard library as a corpus: real text that every machine with Python carries.

Source code (comments and docstrings with it) has the source `python-stdlib`; the topics of the interactive help,
which are prose of the language reference, have the source `python-docs`, a document each. Tests are left out, and so
are installed packages, empty files, and the build settings that `sysconfig` generates for one machine.
"""

import ast
import sysconfig
from collections.abc import Iterator, Sequence

from tilth.data import locations
from tilth.data.inputs import Input
from tilth.data.records import Quarantine, Record
from tilth.data.text_files import decode_source
from tilth.recipe import BadInput

LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
TOPICS = "pydoc_data/topics.py"
LICENSE = "PSF-2.0"
ATTRIBUTION = "Python Software Foundation; the Python standard library and its documentation"


class StdlibInput(Input):
    """Source and documentation of the running Python's standard library; ids are relative paths."""

    kind: str = "stdlib"
    path: str = ""  # empty: the library of the Python that runs
    license: str | None = LICENSE
    attribution: str | None = ATTRIBUTION

    def folder(self) -> str:
        return self.path or sysconfig.get_path("stdlib")

    def paths(self) -> list[str]:
        folder = self.folder()
        found = [path for path in locations.walk(folder, _left_out) if path.endswith(".py")]
        if not found:
            raise BadInput(f"No Python source in {folder}, where this Python says its standard library is (it may be "
                           f"zipped or stripped). Use another Python, or set the input's `path`.")
        return sorted(found, key=lambda path: locations.relative(path, folder))

    def _records(self, quarantine: Quarantine, paths: Sequence[str]) -> Iterator[Record]:
        folder = self.folder()
        for path in paths:
            yield from self.records_of(path, locations.relative(path, folder), quarantine)

    def records_of(self, path: str, name: str, quarantine: Quarantine) -> Iterator[Record]:
        with locations.open_binary(path) as file:
            content = file.read()
        try:
            text = decode_source(content)
        except ValueError as error:
            return self.bad(quarantine, path, f"not decodable: {error}", record=name)
        if name == TOPICS:
            yield from self._topics(text, name)
        elif text:
            yield self._record(name, text, self.source or "python-stdlib")

    def _topics(self, text: str, name: str) -> Iterator[Record]:
        """The help topics, from the one dictionary that the file assigns; read as data, never run."""
        for topic, prose in sorted(read_topics(text).items()):
            yield self._record(f"{name}#{topic}", prose, self.source or "python-docs")

    def _record(self, identity: str, text: str, source: str) -> Record:
        return {"id": identity, "text": text, "source": source, "license": self.license,
                "attribution": self.attribution, "metadata": None}


def _left_out(name: str) -> bool:
    return name in LEFT_OUT or name.startswith((".", "_sysconfigdata"))


def read_topics(text: str) -> dict[str, str]:
    """`{topic: prose}` from the source of `pydoc_data/topics.py`; BadInput if it holds no such dictionary."""
    for statement in ast.parse(text).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict):
            topics = ast.literal_eval(statement.value)
            if all(isinstance(key, str) and isinstance(value, str) for key, value in topics.items()):
                return dict(topics)
    raise BadInput(f"{TOPICS} of the standard library holds no dictionary of topics; set another input.")
