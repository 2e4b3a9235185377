"""The cache of look-ups: bounded, the latest kept, and nothing stale ever given."""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from interleavings import Reader
from support import make_writer, session
from tables import add, both_ways

from jidoka_shm.cache import Cache
from jidoka_shm.errors import SessionNotFound

if TYPE_CHECKING:
    from collections.abc import Callable

    from jidoka_shm.session import Session

SIZES = [0, 1, 2, 3, 4, 5, 10, 31]


class Looks:
    """A reader of a table in plain memory, that counts its look-ups of the table."""

    def __init__(self, size: int, *, verify: bool = False) -> None:
        self.writer = make_writer(64)
        self.reader = Reader(self.writer, cache_size=size, verify=verify)
        self.looks = 0
        self.view = view = self.reader._view
        view.quick_look_up = self._counting(view.quick_look_up)
        view.look_up = self._counting(view.look_up, closer=True)

    def _counting(self, look: Callable[[UUID], Any], *, closer: bool = False) -> Callable:
        def count_and_look(session_id: UUID) -> object:
            found = look(session_id)
            # A quick look that cannot tell is followed by the closer one.
            self.looks += closer or found is not None
            return found

        return count_and_look

    def look_up(self, key: int) -> Session | None:
        return self.reader.get(UUID(int=key))

    def entry_of(self, key: int) -> int:
        found = self.writer.look_up(UUID(int=key))
        assert found is not None
        return found[0]

    def remove(self, key: int) -> None:
        self.writer.remove(self.entry_of(key))


# ---------------------------------------------------------------------------- what it keeps


def _filled(size: int, count: int) -> Cache:
    """Return a cache that sessions were put into, with the ids 1 to ``count``, in that order."""
    cache, writer = Cache(size), make_writer()
    for key in range(1, count + 1):
        cache.keep(UUID(int=key), (key, key << 24, session(writer, key)))
    return cache


@pytest.mark.parametrize("size", SIZES[1:])
def test_it_keeps_the_latest_more_than_half_of_its_size_and_no_more_than_that(size: int) -> None:
    for count in range(4 * size + 4):
        cache = _filled(size, count)
        assert len(cache) == len(cache.kept) <= size
        assert len(cache) >= min(size, count, size // 2 + 1)
        assert list(cache.kept) == list(range(count + 1 - len(cache), count + 1))


@pytest.mark.parametrize("size", SIZES[1:])
def test_it_forgets_the_older_half_together_once_it_is_full(size: int) -> None:
    assert len(_filled(size, size)) == size
    assert len(_filled(size, size + 1)) == size // 2 + 1


def test_a_session_is_kept_with_its_entry_and_word() -> None:
    writer = make_writer()
    (made,) = add(writer, 5)
    found = writer.look_up(UUID(int=5))
    cache = Cache(1)
    cache.keep(UUID(int=5), found)
    assert cache.kept == {5: (5, writer.index.words[5], made)}


def test_a_session_kept_again_costs_a_full_cache_nothing() -> None:
    for size in SIZES[1:]:
        cache, writer = _filled(size, size), make_writer()
        cache.keep(UUID(int=1), (7, 9 << 24, session(writer, 1)))
        assert len(cache) == size


def test_a_session_kept_again_takes_the_place_of_its_older_version() -> None:
    cache, writer = _filled(3, 2), make_writer()
    newer = (7, 9 << 24, session(writer, 1))
    cache.keep(UUID(int=1), newer)
    assert len(cache) == 2
    assert cache.kept[1] is newer


# ---------------------------------------------------------------------------- look-ups


@both_ways
def test_without_a_cache_each_look_up_looks_at_the_table(*, verify: bool) -> None:
    cache = Looks(0, verify=verify)
    (made,) = add(cache.writer, 1)
    for looks in (1, 2, 3):
        assert cache.look_up(1) == made
        assert cache.looks == looks
    assert len(cache.view.cache) == 0


@both_ways
@pytest.mark.parametrize("size", [1, 2, 3, 4, 10, 65_536])
def test_a_repeated_look_up_is_the_same_object_and_no_look_at_the_table(
    size: int, *, verify: bool
) -> None:
    cache = Looks(size, verify=verify)
    (made,) = add(cache.writer, 1)
    first = cache.look_up(1)
    assert first == made
    for _ in range(3):
        assert cache.look_up(1) is first
        assert cache.reader.get_session_info(UUID(int=1)) is first
        assert UUID(int=1) in cache.reader
    assert cache.looks == len(cache.view.cache) == 1


@pytest.mark.parametrize("way", ["get", "get_session_info", "__getitem__", "by text"])
@both_ways
def test_each_way_to_look_a_session_up_keeps_it(way: str, *, verify: bool) -> None:
    cache = Looks(4, verify=verify)
    add(cache.writer, 1)
    if way == "by text":
        first = cache.reader[str(UUID(int=1))]
    else:
        first = getattr(cache.reader, way)(UUID(int=1))
    assert cache.looks == 1
    assert cache.look_up(1) is first
    assert cache.looks == 1


@both_ways
@pytest.mark.parametrize("size", SIZES)
def test_look_ups_keep_no_more_than_they_are_asked_to(size: int, *, verify: bool) -> None:
    cache = Looks(size, verify=verify)
    made = add(cache.writer, *range(1, 51))
    for _ in range(3):
        for one in made:
            assert cache.look_up(one.session_id.int) == one
            assert len(cache.view.cache) <= size


@both_ways
@pytest.mark.parametrize("size", [1, 2, 3, 10, 40])
def test_the_latest_half_at_least_is_not_looked_up_again(size: int, *, verify: bool) -> None:
    cache = Looks(size, verify=verify)
    for key in range(1, 51):
        add(cache.writer, key)
        cache.look_up(key)
        looks = cache.looks
        for kept in range(key, max(key - size // 2 - 1, 0), -1):
            assert cache.look_up(kept) is not None
        assert cache.looks == looks


@both_ways
def test_a_changed_word_means_look_again(*, verify: bool) -> None:
    cache = Looks(8, verify=verify)
    add(cache.writer, 1)
    first = cache.look_up(1)
    changed = session(cache.writer, 1, metadata={"new": True})
    cache.writer.replace(1, changed)
    assert cache.look_up(1) == changed != first
    assert cache.looks == 2
    assert cache.look_up(1) == changed
    assert cache.looks == 2


@both_ways
def test_a_session_that_is_gone_is_not_found_and_a_miss_is_not_kept(*, verify: bool) -> None:
    cache = Looks(8, verify=verify)
    assert cache.look_up(1) is None
    assert len(cache.view.cache) == 0
    add(cache.writer, 1)
    assert cache.look_up(1) is not None
    cache.remove(1)
    assert cache.look_up(1) is None
    with pytest.raises(SessionNotFound):
        cache.reader.get_session_info(UUID(int=1))
    (again,) = add(cache.writer, 1)
    assert cache.look_up(1) == again


@both_ways
def test_a_session_made_anew_at_another_entry_is_found(*, verify: bool) -> None:
    cache = Looks(8, verify=verify)
    near, far = 7, 7 + cache.writer.geometry.index_size
    add(cache.writer, near, far)
    assert cache.look_up(far) is not None
    at = cache.view.cache.kept[far][0]
    assert at == 8
    cache.remove(far)
    cache.remove(near)
    (again,) = add(cache.writer, far)
    assert cache.view.words[at] == 0
    assert cache.look_up(far) == again
    assert cache.view.cache.kept[far][0] == at - 1


@both_ways
def test_another_session_at_the_entry_of_a_kept_one_is_not_taken_for_it(*, verify: bool) -> None:
    cache = Looks(8, verify=verify)
    size = cache.writer.geometry.index_size
    add(cache.writer, 7)
    assert cache.look_up(7) is not None
    cache.remove(7)
    (added,) = add(cache.writer, 7 + size)
    assert cache.look_up(7) is None
    assert cache.look_up(7 + size) == added


@both_ways
@pytest.mark.parametrize("size", [0, 1, 2, 3, 6])
def test_nothing_stale_is_given_whatever_comes_between(size: int, *, verify: bool) -> None:
    rng = random.Random(size)
    cache = Looks(size, verify=verify)
    keys = [home + turn * cache.writer.geometry.index_size for home in (3, 4) for turn in range(4)]
    live: dict[int, Session] = {}
    for step in range(2000):
        key = rng.choice(keys)
        change = rng.randrange(6)
        if key not in live and change < 2:
            (live[key],) = add(cache.writer, key, metadata={"step": step})
        elif key in live and change == 0:
            cache.remove(key)
            del live[key]
        elif key in live and change == 1:
            live[key] = session(cache.writer, key, metadata={"step": step})
            cache.writer.replace(cache.entry_of(key), live[key])
        assert cache.look_up(key) == live.get(key), step
        assert len(cache.view.cache) <= size, step


# ---------------------------------------------------------------------------- threads


@pytest.mark.parametrize("size", SIZES[1:])
def test_what_threads_kept_beyond_its_size_is_forgotten_with_the_rest(size: int) -> None:
    cache, writer = _filled(size, size), make_writer()
    # Each thread may have seen room for one before any of them took it.
    for key in range(100, 103):
        cache.kept[key] = (key, key << 24, session(writer, key))
    cache.keep(UUID(int=103), (103, 103 << 24, session(writer, 103)))
    assert len(cache) <= size
    assert list(cache.kept)[-1] == 103


@pytest.mark.usefixtures("_often_switched")
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_threads_share_one_without_a_lock(size: int) -> None:
    threads, cache, writer = 4, Cache(size), make_writer(64)
    found = [
        (UUID(int=one.session_id.int), writer.look_up(one.session_id))
        for one in add(writer, *range(1, 33))
    ]
    wrong: list[object] = []
    start = threading.Barrier(threads, timeout=30)

    def work(seed: int) -> None:
        rng = random.Random(seed)
        start.wait()
        try:
            for _ in range(3000):
                session_id, where = rng.choice(found)
                cache.keep(session_id, where)
                hit = cache.kept.get(session_id.int)
                if hit is not None and hit is not where:
                    wrong.append((seed, hit, where))
                # Each thread may have seen room for one before any of them took it.
                if len(cache) > (size and size + threads - 1):
                    wrong.append((seed, len(cache)))
        except Exception as error:  # noqa: BLE001 - whatever a race may end in
            wrong.append((seed, error))

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []
    cache.keep(*found[0])
    assert len(cache) <= size
