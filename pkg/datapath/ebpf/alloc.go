package ebpf

import (
	"math/bits"
	"time"
)

// graceTime is how long what was retired stays untouched. A program reads a set within microseconds, but it may be
// preempted while it does.
const graceTime = time.Second

// block is a run of entries in the backends map.
type block struct{ offset, size uint32 }

// blockSize is what a block for n backends really takes: a quarter more at most, so that a freed block fits many.
// It must stay a function of n alone: after a restart the size of a block is only known by its count.
func blockSize(n uint32) uint32 {
	if n <= 8 {
		return n
	}
	step := uint32(1) << (bits.Len32(n-1) - 3)
	return (n + step - 1) / step * step
}

// allocator hands out blocks below limit.
type allocator struct {
	limit uint32
	next  uint32              // nothing at or above was ever handed out
	free  map[uint32][]uint32 // by size: offsets
	wait  quarantine[block]
}

func newAllocator(limit uint32) *allocator {
	return &allocator{limit: limit, free: map[uint32][]uint32{}}
}

// take returns a block for n backends, or false when there is no room.
func (a *allocator) take(n uint32, now time.Time) (block, bool) {
	if n == 0 {
		return block{}, true
	}
	a.wait.release(now, func(b block) { a.free[b.size] = append(a.free[b.size], b.offset) })
	size := blockSize(n)
	if b, ok := a.pop(size); ok {
		return b, true
	}
	if size <= a.limit-a.next {
		b := block{a.next, size}
		a.next += size
		return b, true
	}
	return a.split(size)
}

func (a *allocator) pop(size uint32) (block, bool) {
	offsets := a.free[size]
	if len(offsets) == 0 {
		return block{}, false
	}
	last := len(offsets) - 1
	a.free[size] = offsets[:last]
	return block{offsets[last], size}, true
}

// split takes the smallest free block that is larger than size and gives back the rest.
func (a *allocator) split(size uint32) (block, bool) {
	var best uint32
	for s, offsets := range a.free {
		if s > size && len(offsets) > 0 && (best == 0 || s < best) {
			best = s
		}
	}
	if best == 0 {
		return block{}, false
	}
	b, _ := a.pop(best)
	a.give(b.offset+size, best-size)
	return block{b.offset, size}, true
}

// give makes a run of entries free, cut into the sizes blocks have.
func (a *allocator) give(offset, size uint32) {
	for size > 0 {
		s := size
		if blockSize(s) != s {
			s = uint32(1) << (bits.Len32(size) - 1)
		}
		a.free[s] = append(a.free[s], offset)
		offset, size = offset+s, size-s
	}
}

// retire makes b free after the grace time.
func (a *allocator) retire(b block, now time.Time) {
	if b.size > 0 {
		a.wait.add(b, now)
	}
}

// restore makes used, sorted by offset and without overlap, the only blocks in use.
func (a *allocator) restore(used []block) {
	*a = *newAllocator(a.limit)
	for _, b := range used {
		a.give(a.next, b.offset-a.next)
		a.next = b.offset + b.size
	}
}

// quarantine keeps things apart for the grace time, in the order they came.
type quarantine[T any] struct {
	items []T
	since []time.Time
	head  int
}

func (q *quarantine[T]) add(item T, now time.Time) {
	if q.head > 1024 && q.head > len(q.items)/2 {
		q.items = append(q.items[:0], q.items[q.head:]...)
		q.since = append(q.since[:0], q.since[q.head:]...)
		q.head = 0
	}
	q.items, q.since = append(q.items, item), append(q.since, now)
}

// release hands what waited long enough to free.
func (q *quarantine[T]) release(now time.Time, free func(T)) {
	for q.head < len(q.items) && now.Sub(q.since[q.head]) >= graceTime {
		free(q.items[q.head])
		q.head++
	}
}

// idPool hands out set ids below limit.
type idPool struct {
	limit, next setID
	free        []setID
	wait        quarantine[setID]
}

func (p *idPool) take(now time.Time) (setID, bool) {
	p.wait.release(now, func(id setID) { p.free = append(p.free, id) })
	if n := len(p.free); n > 0 {
		id := p.free[n-1]
		p.free = p.free[:n-1]
		return id, true
	}
	if p.next == p.limit {
		return 0, false
	}
	p.next++
	return p.next - 1, true
}

func (p *idPool) retire(id setID, now time.Time) { p.wait.add(id, now) }
