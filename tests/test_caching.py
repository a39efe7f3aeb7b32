import threading

from ess_kernels.caching import cached_property


class Counted:
    def __init__(self):
        self.calls = 0

    @cached_property
    def value(self):
        """What it is."""
        self.calls += 1
        return object()


def test_computed_once_and_kept_with_its_instance():
    first, second = Counted(), Counted()
    assert first.value is first.value
    assert first.calls == 1
    assert second.value is not first.value
    del first.value
    assert first.value is not None and first.calls == 2
    assert Counted.value.__doc__ == "What it is."


def test_instances_do_not_wait_for_each_other():
    # with a lock that they share the second would wait for the first, and a child forked meanwhile would wait for ever
    entered, release = threading.Event(), threading.Event()

    class Waiting:
        def __init__(self, waits):
            self.waits = waits

        @cached_property
        def value(self):
            entered.set()
            return not self.waits or release.wait(60)

    threads = [
        threading.Thread(target=lambda waits=waits: Waiting(waits).value, daemon=True) for waits in (True, False)
    ]
    threads[0].start()
    assert entered.wait(60)
    threads[1].start()
    threads[1].join(30)
    assert threads[0].is_alive() and not threads[1].is_alive()
    release.set()
    threads[0].join(60)
    assert not threads[0].is_alive()
