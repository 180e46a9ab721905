"""One training step: loss, gradients, clipping by the global norm, AdamW or Muon."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn
from mindspore import ops as mops

from mindpangu import ops
from mindpangu.parallel.ranks import ALONE, Ranks, buckets, by_owner
from mindpangu.train.schedule import ADAMW, LOSS_SCALE, MAX_NORM, MUON

MOMENTS, AVERAGE = ("moment1", "moment2"), "average"  # what their names begin with

_add_to = mops.MultitypeFuncGraph("add_to")
_take = mops.MultitypeFuncGraph("take")
_put = mops.MultitypeFuncGraph("put")
_move = mops.MultitypeFuncGraph("move")
_map = mops.HyperMap()


@_add_to.register("Tensor", "Tensor")
def _add_to_tensor(total, gradient):
    return mops.assign_add(total, gradient)


@_take.register("Number", "Tensor", "Tensor")
def _take_of_tensor(parts, total, gradient):
    """The mean over all parts, of which the last comes now; the sum begins anew."""
    mean = (total + gradient) / parts
    return mops.depend(mean, mops.assign(total, mops.zeros_like(mops.depend(total, mean))))


@_put.register("Tensor", "Tensor")
def _put_tensor(weight, value):
    return mops.assign(weight, value)


@_move.register("Tensor", "Tensor", "Tensor")
def _move_tensor(share, average, weight):
    return mops.assign(average, average + share * (weight - average))


class TrainStep:
    """step(coefficients, *batch) -> (loss, gradient norm before clipping); updates the parameters.

    The coefficients come from `schedule.coefficients`. `loss_net(*batch)` returns a scalar. With `muon`, parameters of
    two or more axes take Muon's step and the others AdamW's, each group clipped by its own norm. Gradients are those of
    the loss times the loss scale, which is taken out again; where their norm is not finite, nothing is updated.

    With several `ranks` each works on its part of the batch, and loss and gradients are averaged over all. With `share`
    each keeps the moments and the average of some weights alone, steps those, and sends them to the others.
    With several `parts`, `add` is called for all parts of a batch but the last, which completes the step.
    """

    add: Addition  # with several parts alone

    def __init__(
        self, loss_net: nn.Cell, muon: bool = False, ranks: Ranks = ALONE, parts: int = 1, share: bool = False
    ) -> None:
        self.parts, sharers = parts, ranks.size if share else 1
        # Weights in order: vectors, then matrices, each group in runs of one owner.
        trained = loss_net.trainable_params()
        vectors, of_vectors = by_owner([p for p in trained if not muon or p.ndim <= 1], sharers)
        matrices, of_matrices = by_owner([p for p in trained if muon and p.ndim > 1], sharers)
        self.vectors = len(vectors)
        self.weights = ParameterTuple(vectors + matrices)
        self.owned = [
            (v, slice(m.start + self.vectors, m.stop + self.vectors)) for v, m in zip(of_vectors, of_matrices)
        ]
        averaged = Averaged(loss_net, self.weights, self.vectors, ranks, parts)
        self.update = Update(self.weights, self.owned, ranks.rank if share else 0)
        # Processes that share update by graphs of their own; in one graph with that their averaging would lose step.
        self._whole = None if sharers > 1 else _Whole(averaged, self.update)
        self.averaged = averaged
        self.average = Average(self.update.mine)
        if parts > 1:
            self.add = Addition(averaged)

    def set_train(self) -> None:
        """Dropout and the like, in the net."""
        self.averaged.set_train()

    def __call__(self, coefficients: Tensor, *batch: Tensor) -> tuple[Tensor, Tensor]:
        if self._whole is not None:
            return self._whole(coefficients, *batch)
        loss, norms, gradients = self.averaged(coefficients, *batch)
        return loss, self.update(coefficients, norms, gradients)

    @property
    def shared(self) -> bool:
        """Whether other processes keep some of the moments."""
        return bool(self.update.broadcasts)

    @property
    def state(self) -> list[Parameter]:
        """What a checkpoint has to hold of this process: weights, its moments and its averages."""
        return [*self.weights, *self.update.moment1, *self.update.moment2, *self.average.values]

    def elsewhere(self) -> set[str]:
        """Names of the moments and averages that other processes keep."""
        of_all = [f"{prefix}.{p.name}" for prefix in (MOMENTS[0], AVERAGE) for p in self.weights]
        of_all += [f"{MOMENTS[1]}.{p.name}" for p in self.weights[: self.vectors]]
        return set(of_all) - {p.name for p in self.state}

    def own_state(self, first: bool) -> dict[str, np.ndarray]:
        """Copies of what a checkpoint has of this process: its moments and averages, and of the first the weights."""
        own = self.state if first else self.state[len(self.weights) :]
        return {p.name: p.asnumpy().copy() for p in own}

    def whole_average(self) -> dict[str, np.ndarray]:
        """The average of each weight, by the weight's name.

        Where averages are shared all processes must ask at once: each sends what it keeps.
        """
        found = {p.name.removeprefix(f"{AVERAGE}."): p.asnumpy() for p in self.average.values}
        for broadcast, runs in zip(self.update.broadcasts, self.owned):
            for weight in [p for run in runs for p in self.weights[run]]:
                mine = found.get(weight.name, np.zeros(weight.shape, np.float32))
                found[weight.name] = broadcast((Tensor(mine),))[0].asnumpy()
        return found


class _Whole(nn.Cell):
    """Both halves of a step as one graph."""

    def __init__(self, averaged: Averaged, update: Update) -> None:
        super().__init__(auto_prefix=False)
        self.averaged, self.update = averaged, update

    def construct(self, coefficients: Tensor, *batch: Tensor) -> tuple[Tensor, Tensor]:
        loss, norms, gradients = self.averaged(coefficients, *batch)
        return loss, self.update(coefficients, norms, gradients)


class Averaged(nn.Cell):
    """construct(coefficients, *batch) -> (loss, norms of the gradients of vectors and of matrices (2,), gradients).

    Averaged over ranks and parts; the gradients are still those of the loss times the loss scale.
    """

    def __init__(self, loss_net: nn.Cell, weights: ParameterTuple, vectors: int, ranks: Ranks, parts: int) -> None:
        super().__init__(auto_prefix=False)
        self.loss_net, self.weights, self.vectors, self.ranks, self.parts = (
            loss_net,
            weights,
            vectors,
            ranks.size,
            parts,
        )
        if ranks.size > 1:
            self.mean_over_ranks = MeanOverRanks([(), *(weight.shape for weight in weights)], ranks.size)
        self.gradient = mops.value_and_grad(self.scaled, None, weights)
        if parts > 1:
            self.sums = weights.clone(prefix="sum", init="zeros")

    def scaled(self, scale: Tensor, *batch: Tensor) -> Tensor:
        """The loss times the loss scale."""
        return self.loss_net(*batch) * scale

    def construct(self, coefficients: Tensor, *batch: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        loss_scale, n = coefficients[LOSS_SCALE], self.vectors
        loss, gradients = self.gradient(loss_scale, *batch)
        if self.parts > 1:
            gradients = _map(mops.partial(_take, self.parts), self.sums, gradients)
        if self.ranks > 1:
            means = self.mean_over_ranks((loss, *gradients))
            loss, gradients = means[0], means[1:]
        vectors, matrices = mops.zeros_like(loss), mops.zeros_like(loss)
        if n > 0:
            vectors = ops.norm(gradients[:n]) / loss_scale
        if n < len(self.weights):
            matrices = ops.norm(gradients[n:]) / loss_scale
        norms = mops.stack((mops.reshape(vectors, ()), mops.reshape(matrices, ())))
        return loss / loss_scale, norms, gradients


class MeanOverRanks(nn.Cell):
    """construct(tensors of `shapes`) -> their means over the ranks, in BUCKETS sums however many they are.

    A collective costs its latency each time, so the tensors of a bucket lie in one while they are summed.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], ranks: int) -> None:
        super().__init__(auto_prefix=False)
        self.shapes, self.sizes = tuple(shapes), tuple(int(np.prod(shape)) for shape in shapes)
        self.buckets = tuple((one.start, one.stop) for one in buckets(self.sizes))
        self.ranks = ranks
        self.sum_over_ranks = mops.AllReduce()

    def construct(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = ()
        for start, stop in self.buckets:
            flat: tuple[Tensor, ...] = ()
            for tensor in tensors[start:stop]:
                flat = (*flat, mops.reshape(tensor, (-1,)))
            mean, place = self.sum_over_ranks(mops.concat(flat)) / self.ranks, 0
            for i in range(start, stop):
                found = (*found, mops.reshape(mean[place : place + self.sizes[i]], self.shapes[i]))
                place += self.sizes[i]
        return found


class Update(nn.Cell):
    """construct(coefficients, norms (2,), gradients) -> norm of all gradients, when the weights are updated.

    `owned`: of each process that shares, its runs of vectors and of matrices among the weights; this is number `own`.
    """

    def __init__(self, weights: ParameterTuple, owned: list[tuple[slice, slice]], own: int) -> None:
        super().__init__(auto_prefix=False)
        self.weights, self.owned = weights, owned
        self.own_vectors, self.own_matrices = owned[own]
        self.mine = ParameterTuple([*weights[self.own_vectors], *weights[self.own_matrices]])
        self.count = self.own_vectors.stop - self.own_vectors.start
        self.moment1 = self.mine.clone(prefix=MOMENTS[0], init="zeros")
        self.moment2 = ParameterTuple(self.mine[: self.count]).clone(prefix=MOMENTS[1], init="zeros")
        self.broadcasts = [mops.Broadcast(owner) for owner in range(len(owned))] if len(owned) > 1 else []

    def construct(self, coefficients: Tensor, norms: Tensor, gradients: tuple[Tensor, ...]) -> Tensor:
        # Each group is clipped by its own norm; one that is not finite leaves all as it is.
        maximum, loss_scale, k = coefficients[MAX_NORM], coefficients[LOSS_SCALE], self.count
        finite, none = mops.isfinite(norms.sum()), mops.zeros_like(maximum)
        moment1, weights = self.moment1, self.weights
        done = [norms]
        if k > 0:
            own, scale = self.own_vectors, maximum / mops.maximum(norms[0], maximum) / loss_scale
            scale = mops.select(finite, scale, none)
            done.append(ops.adamw(coefficients[ADAMW], scale, weights[own], moment1[:k], self.moment2, gradients[own]))
        if k < len(moment1):
            own, scale = self.own_matrices, maximum / mops.maximum(norms[1], maximum) / loss_scale
            scale = mops.select(finite, scale, none)
            done.append(ops.muon(coefficients[MUON], scale, weights[own], moment1[k:], gradients[own]))
        after = tuple(done)
        for owner, broadcast in enumerate(self.broadcasts):  # one after the other, in the same order everywhere
            of_vectors, of_matrices = self.owned[owner]
            sent = weights[of_vectors] + weights[of_matrices]
            if len(sent) > 0:
                after = _map(_put, sent, broadcast(mops.depend(sent, after)))
        return mops.depend(mops.sqrt((norms * norms).sum()), after)


class Average(nn.Cell):
    """construct(share ()) -> share; the averages `values` go that share of the way to the weights."""

    def __init__(self, weights: ParameterTuple) -> None:
        super().__init__(auto_prefix=False)
        self.weights, self.values = weights, weights.clone(prefix=AVERAGE, init="zeros")
        for value, weight in zip(self.values, self.weights):
            value.set_data(Tensor(weight.asnumpy().copy()))

    def construct(self, share: Tensor) -> Tensor:
        return mops.depend(share, _map(mops.partial(_move, share), self.values, self.weights))


class Addition(nn.Cell):
    """construct(loss scale (), *batch) -> loss; adds the gradients of a part of a batch to the step's sums."""

    def __init__(self, averaged: Averaged) -> None:
        super().__init__(auto_prefix=False)
        self.scaled, self.sums = averaged.scaled, averaged.sums
        self.gradient = mops.value_and_grad(averaged.scaled, None, averaged.weights)

    def construct(self, scale: Tensor, *batch: Tensor) -> Tensor:
        loss, gradients = self.gradient(scale, *batch)
        done = _map(_add_to, self.sums, gradients)
        return mops.depend(loss / scale, done)
