"""What a GPU would do at once, and whether anybody then reads what is not yet written.

On a CPU lanes do everything where it stands. Here each operator is noted with the agent that would run it next
to a GPU: the host, the current stream or a lane; and each wait with whom it makes follow whom, as vector
clocks. Two accesses of one storage of which one writes must be ordered by them.
"""

from collections import defaultdict
from contextlib import contextmanager

from counting import FRESH, leaves
from engine_memory import MOVES, Border

from hpcdl.engine.host_memory import HostMemory
from hpcdl.engine.lane import Lane

HOST, CURRENT = "host", "current stream"
VIEWS = MOVES - {"copy_"}
READ = {"_local_scalar_dense", "equal", "is_nonzero"}  # the host waits for what these say


class Races(Border):
    """Raises when an operator meets what another may still be doing."""

    def __init__(self, host):
        super().__init__(host)
        self._running = [CURRENT]
        self._clocks = defaultdict(lambda: defaultdict(int))
        self._touched = defaultdict(dict)  # of a storage: from where to where, by whom, whether written; when
        self._alive = []  # storages, so that none takes the place of another

    def watch(self, monkeypatch):
        """Let lanes and the host's waits be seen."""
        monkeypatch.setattr(Lane, "running", lambda lane: self._within(lane))  # noqa: PLW0108 - binds the lane
        monkeypatch.setattr(Lane, "follow", lambda lane: self._follow(lane, self._running[-1]))
        monkeypatch.setattr(Lane, "join", lambda lane: self._follow(self._running[-1], lane))
        monkeypatch.setattr(Lane, "wait", lambda lane: self._follow(HOST, lane))
        monkeypatch.setattr(HostMemory, "settle", lambda _: self._follow(HOST, self._running[-1]))
        return self

    def knows(self, later, earlier):
        """Whether all that ``earlier`` was given runs before what ``later`` is given from now on."""
        return self._clocks[later][earlier] >= self._clocks[earlier][earlier]

    @contextmanager
    def _within(self, lane):
        self._running.append(lane)
        yield
        self._running.pop()

    def _follow(self, later, earlier):
        mine = self._clocks[later]
        for agent, time in self._clocks[earlier].items():
            mine[agent] = max(mine[agent], time)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        name = function.overloadpacket.__name__
        told = leaves((args, kwargs))
        if told and name not in VIEWS | FRESH:
            agent = self._agent(told)
            self._note(agent, name, told, self._written(function, args, kwargs) + leaves(result))
            waits = name in READ or (
                name == "copy_" and self._crosses(told) and not asynchronous(args, kwargs)
            )
            if agent is HOST:
                self.there.update(one.untyped_storage() for one in leaves(result))
            elif waits:
                self._follow(HOST, agent)
        return result

    def _agent(self, tensors):
        there = [self.on_host(one) for one in tensors]
        sized = [held for held, one in zip(there, tensors, strict=True) if one.dim()] or there
        return HOST if all(sized) else self._running[-1]

    def _crosses(self, tensors):
        return len({self.on_host(one) for one in tensors}) == 2

    def _written(self, function, args, kwargs):
        given = dict(zip((one.name for one in function._schema.arguments), args, strict=False)) | kwargs
        written = [
            given.get(one.name)
            for one in function._schema.arguments
            if one.alias_info is not None and one.alias_info.is_write
        ]
        return leaves(written)

    def _note(self, agent, name, told, written):
        if agent is not HOST:
            self._follow(agent, HOST)  # nothing runs before it was asked for
        clock = self._clocks[agent]
        clock[agent] += 1
        changed = {key(one) for one in written}
        for one in {key(one): one for one in (*told, *written)}.values():
            self._alive.append(one.untyped_storage())
            self._touch(agent, name, key(one), writes=key(one) in changed)

    def _touch(self, agent, name, place, *, writes):
        storage, begin, end = place
        touched, clock = self._touched[storage], self._clocks[agent]
        for (first, last, other, wrote), time in list(touched.items()):
            if begin < last and first < end and (writes or wrote):
                assert clock[other] >= time, f"{name} does not wait for {other}"
                if writes and begin <= first and last <= end:
                    del touched[first, last, other, wrote]  # who waits for this waits for that
        touched[begin, end, agent, writes] = clock[agent]


def asynchronous(args, kwargs):
    return kwargs.get("non_blocking", len(args) > 2 and args[2])


def key(tensor):
    """The storage of a tensor, and from where to where in it."""
    size, start = tensor.itemsize, tensor.storage_offset()
    reach = sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.untyped_storage()._cdata, start * size, (start + reach + bool(tensor.numel())) * size
