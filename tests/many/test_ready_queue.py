"""The queue of builds that need each other."""

from __future__ import annotations

import random

from lockbuild.many.queue import ReadyQueue


def _queue(needs: dict[str, str]) -> ReadyQueue[str]:
    queue: ReadyQueue[str] = ReadyQueue()
    for thing in needs:
        queue.add(thing)
    for thing, needed in needs.items():
        for each in needed:
            queue.need(thing, each)
    return queue


def test_what_needs_nothing_is_taken_first_in_the_order_of_adding() -> None:
    queue = _queue({"a": "c", "b": "", "c": ""})
    assert [queue.take(), queue.take(), queue.take()] == ["b", "c", None]


def test_a_thing_is_ready_when_the_last_one_that_it_needs_is_done() -> None:
    queue = _queue({"a": "bc", "b": "", "c": ""})
    queue.take()
    queue.take()
    queue.done("b")
    assert queue.take() is None
    queue.done("c")
    assert queue.take() == "a"


def test_a_thing_that_turns_out_to_need_another_one_is_taken_again_after_that() -> None:
    queue = _queue({"a": "", "b": ""})
    assert queue.take() == "a"
    queue.need("a", "b")
    assert queue.take() == "b"
    assert queue.take() is None
    queue.done("b")
    assert queue.take() == "a"


def test_a_thing_that_needs_one_that_is_done_is_ready_again_at_once() -> None:
    queue = _queue({"a": "", "b": ""})
    queue.take()
    queue.take()
    queue.done("b")
    queue.need("a", "b")
    assert queue.take() == "a"


def test_what_needs_a_failed_thing_is_hopeless() -> None:
    queue = _queue({"a": "b", "b": "c", "c": "", "d": ""})
    assert queue.hopeless() is None
    queue.failed("c")
    assert queue.hopeless() == ("b", "c")
    queue.failed("b")
    assert queue.hopeless() == ("a", "b")
    queue.failed("a")
    assert queue.hopeless() is None
    assert queue.take() == "d"


def test_a_circle_lists_each_thing_before_the_one_that_it_needs() -> None:
    queue = _queue({"x": "a", "a": "b", "b": "c", "c": "a", "d": ""})
    circle = queue.circle()
    assert circle is not None
    assert sorted(circle) == ["a", "b", "c"]
    assert [circle[(circle.index(thing) + 1) % 3] for thing in "abc"] == ["b", "c", "a"]
    assert _queue({"a": "b", "b": ""}).circle() is None


def test_random_things_all_get_done_and_none_before_what_it_needs() -> None:
    for seed in range(200):
        chance = random.Random(seed)
        names = [chr(97 + number) for number in range(8)]
        needs = {name: "".join(each for each in names[:n] if chance.random() < 0.3) for n, name in enumerate(names)}
        queue = _queue(dict(chance.sample(sorted(needs.items()), len(needs))))
        running: list[str] = []
        done: list[str] = []
        while queue:
            while (thing := queue.take()) is not None:
                running.append(thing)
            thing = running.pop(chance.randrange(len(running)))
            assert set(needs[thing]) <= set(done)
            queue.done(thing)
            done.append(thing)
        assert sorted(done) == names
