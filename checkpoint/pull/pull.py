"""Copies a checkpoint from a base address into a directory, and again and again until all of it is there.

Knows nothing of HTTP. 1. Configuration, tokenizer, template and index come first and are tried out, so that a checkpoint
which cannot be served costs no time; 2. the shards that the index names follow, several at once, if the disk has room.
A file that is there with its size (and checksum, if one is known) is left alone; nothing but these files is touched.
"""

import shutil
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ..chat_template import TEMPLATE_FILE
from ..files import INDEX_FILE, SINGLE_FILE, no_tensor, read_index
from ..generation import FILE as GENERATION_FILE
from ..model_config import CONFIG_FILE, ModelConfig
from ..tensor_names import all_tensors
from ..texts import Texts
from ..tokenizer import RANKS_FILE, TOKENIZER_FILE
from .checksums import SUMS_FILE, file_sha256, parse_sums
from .errors import PullError, StatusError
from .partial import Partial, kept_bytes
from .progress import Progress
from .retry import Retries, RetryPolicy
from .source import Remote, Source, parse_url, shown
from .transfer import Transfer

# What is read without the tensors, and whether the reader can do without it.
_TEXTS = {
    CONFIG_FILE: False,
    TOKENIZER_FILE: False,
    RANKS_FILE: False,
    TEMPLATE_FILE: True,
    GENERATION_FILE: True,
    INDEX_FILE: True,
}
_OPTIONAL = {name for name, optional in _TEXTS.items() if optional}
_FREE_SPACE_MARGIN = 64 << 20

T = TypeVar("T")


@dataclass(frozen=True)
class PullReport:
    num_files: int
    num_bytes: int
    bytes_received: int


def pull(
    url: str,
    directory: Path,
    *,
    jobs: int,
    say: Callable[[str], None],
    token: str = "",
    sha256sums: str | None = None,
    retry: RetryPolicy = RetryPolicy(),  # noqa: B008 - frozen
) -> PullReport:
    """``sha256sums`` is a file or an address; without it the checkpoint's own SHA256SUMS counts, if it has one."""
    with Source(url, token, jobs) as source:
        files = _Files(source, directory, jobs, retry, say)
        files.sums = _read_sums(source, sha256sums, files.retries())
        directory.mkdir(parents=True, exist_ok=True)
        files.fetch(_TEXTS)
        texts = Texts.from_dir(directory)
        files.fetch(_shards(directory / INDEX_FILE, texts.config))
    return files.report()


def _shards(index: Path, config: ModelConfig) -> list[str]:
    """Raises CheckpointError if the index lacks a tensor that will be needed."""
    if not index.exists():
        return [SINGLE_FILE]
    placed = read_index(index)
    for spec in all_tensors(config):
        if spec.name not in placed:
            raise no_tensor(index, spec.name, placed)
    return sorted(set(placed.values()))


def free_bytes(directory: Path) -> int:
    return shutil.disk_usage(directory).free


class _Files:
    def __init__(
        self, source: Source, directory: Path, jobs: int, retry: RetryPolicy, say: Callable[[str], None]
    ) -> None:
        self.sums: dict[str, str] = {}
        self._source = source
        self._directory = directory
        self._jobs = jobs
        self._retry = retry
        self._say = say
        self._stop = threading.Event()
        self._progress = Progress(say)
        self._checksums: dict[str, str | None] = {}

    def retries(self) -> Retries:
        return Retries(self._retry, self._stop, self._say)

    def fetch(self, names: Iterable[str]) -> None:
        looked = self._each(self._look, list(names))
        known = {name: remote for name, remote in looked.items() if remote is not None}
        self._check_space(known)
        self._progress.expect(sum(remote.size or 0 for remote in known.values()))
        self._checksums |= self._each(lambda name: self._fetch(name, known[name]), list(known))

    def report(self) -> PullReport:
        present = {name: checksum for name, checksum in self._checksums.items() if (self._directory / name).exists()}
        unknown = sorted(name for name, checksum in present.items() if checksum is None)
        if unknown:
            self._say(f"no checksum is known for {len(unknown)} of {len(present)} files: {_listed(unknown)}")
        size = sum((self._directory / name).stat().st_size for name in present)
        return PullReport(len(present), size, self._progress.received)

    def _look(self, name: str) -> Remote | None:
        """None: the source does not have it, and need not."""
        try:
            remote = self.retries().run(lambda: self._source.look(name))
        except StatusError as error:
            self._do_without(name, error)
            return None
        return Remote(remote.size, self.sums.get(name, remote.sha256))

    def _fetch(self, name: str, known: Remote) -> str | None:
        """Returns the checksum that the file was compared with."""
        if self._is_there(name, known):
            self._progress.keep(known.size or 0)
            return known.sha256
        partial = Partial(self._directory, name, self._say)
        try:
            self._progress.keep(partial.size)
            return Transfer(self._source, partial, name, known, stop=self._stop, count=self._progress.receive).run(
                self.retries()
            )
        except StatusError as error:
            self._do_without(name, error)
            partial.discard()
            return None
        finally:
            partial.close()

    def _is_there(self, name: str, known: Remote) -> bool:
        path = self._directory / name
        if not path.is_file() or (known.size is None and known.sha256 is None):
            return False
        if known.size is not None and path.stat().st_size != known.size:
            self._say(f"{path}: has {path.stat().st_size} bytes, must have {known.size}; pulled again")
            return False
        if known.sha256 is not None and (found := file_sha256(path)) != known.sha256:
            self._say(f"{path}: SHA-256 is {found}, must be {known.sha256}; pulled again")
            return False
        return True

    def _do_without(self, name: str, error: StatusError) -> None:
        if error.status != 404 or name not in _OPTIONAL:
            raise error
        if (self._directory / name).exists():
            raise PullError(f"{self._directory / name}: the source has no such file; remove it") from error

    def _check_space(self, known: dict[str, Remote]) -> None:
        needed = 0
        for name, remote in known.items():
            path = self._directory / name
            if remote.size is not None and not (path.is_file() and path.stat().st_size == remote.size):
                needed += max(0, remote.size - kept_bytes(self._directory, name))
        free = free_bytes(self._directory)
        if needed and needed + _FREE_SPACE_MARGIN > free:
            needed += _FREE_SPACE_MARGIN
            raise PullError(f"{self._directory}: {needed / 1e9:.1f} GB more needed, {free / 1e9:.1f} GB free")

    def _each(self, work: Callable[[str], T], names: list[str]) -> dict[str, T]:
        """The first fault stops all."""
        with ThreadPoolExecutor(self._jobs) as pool:
            tasks = {pool.submit(work, name): name for name in names}
            try:
                return {tasks[task]: task.result() for task in as_completed(tasks)}
            except BaseException:
                self._stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _read_sums(source: Source, given: str | None, retries: Retries) -> dict[str, str]:
    if given is not None and not given.startswith(("http://", "https://")):
        return parse_sums(Path(given).read_text(encoding="utf-8", errors="replace"), given)
    url = source.address(SUMS_FILE) if given is None else parse_url(given)
    try:
        return parse_sums(retries.run(lambda: source.text(url)), shown(url))
    except StatusError as error:
        # Object storage that does not let strangers list a bucket answers 403 for what is not there.
        if given is None and error.status in (403, 404):
            return {}
        raise


def _listed(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]}, {names[1]} and {len(names) - 2} more"
